"""Text for the console and for text files: tables with two spaces between columns, and counts."""


def aligned(rows, left=0):
    """Returns rows of text as a table, one line per row.

    A row with fewer cells than the longest ends in a message: its last cell runs across the columns
    that follow, and widens none.

    Args:
      rows: sequences of str, the header among them.
      left: number of leading columns that are aligned left; the others are aligned right.

    Returns:
      The lines as one str, without spaces at their ends and without a final newline.
    """
    rows = [list(row) for row in rows]
    count = max(map(len, rows), default=0)
    in_columns = [row if len(row) == count else row[:-1] for row in rows]
    widths = [0] * count
    for cells in in_columns:
        for column, cell in enumerate(cells):
            widths[column] = max(widths[column], len(cell))
    lines = []
    for row, cells in zip(rows, in_columns, strict=True):
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=False))
        ]
        lines.append("  ".join(padded + row[len(cells) :]).rstrip())
    return "\n".join(lines)


def counted(number, word, words=None):
    """Returns a number with its noun, as in '1 filter' and '3 processes'."""
    return f"{number} {word if number == 1 else words or word + 's'}"
