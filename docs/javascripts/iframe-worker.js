// Browsers refuse a worker to a page that was opened from a folder. There, the worker of the search
// runs in a hidden frame instead, and no script of another host is needed for that.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentWindow
      const load = (source) =>
        new Promise((resolve) => {
          const script = inside.document.createElement("script")
          script.src = source
          script.onload = resolve
          inside.document.body.append(script)
        })
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...sources) => Promise.all(sources.map(load))
      this.loaded = load(url).then(() => inside)
    }

    postMessage(data) {
      this.loaded.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
