# Starts a Slurm of two nodes on this machine, for tests that source this file: munged, mariadbd,
# slurmdbd, slurmctld and two slurmd, with their files under one folder. Needs root and Debian's
# packages.

packages=(slurm-wlm slurmdbd munge mariadb-server openmpi-bin libopenmpi-dev)
daemons=()  # process ids, in the order of their start

# Installs the missing packages, without starting their services.
install_packages() {
  local missing=() each
  for each in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$each" 2>/dev/null | grep -qx installed ||
      missing+=("$each")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || {
    echo "error: ${missing[*]} are missing, and there is no apt-get to install them" >&2
    return 1
  }
  echo "installing ${missing[*]}"
  apt_get update || true # an outdated package list may suffice
  without_services apt_get install -y --no-install-recommends "${missing[@]}" || {
    echo "error: apt-get could not install ${missing[*]}" >&2
    return 1
  }
}

apt_get() {
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 \
    -o Acquire::Retries=3 "$@" >/dev/null
}

# Runs a command while policy-rc.d keeps Debian's packages from starting their services.
without_services() {
  local policy=/usr/sbin/policy-rc.d status=0
  if [ -e "$policy" ]; then
    "$@"
    return
  fi
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  "$@" || status=$?
  rm -f "$policy"
  return $status
}

# start_cluster FOLDER CPUS: starts the daemons; each node has CPUS processors. Sets SLURM_CONF and
# ports.
start_cluster() {
  local folder=$1 cpus=$2
  mkdir -m 755 "$folder"
  mkdir -m 700 "$folder/munge"
  mkdir "$folder/state" "$folder/logs" "$folder/n1" "$folder/n2"
  read -r -a ports < <(free_ports 4)
  write_configuration "$folder" "$cpus"
  export SLURM_CONF=$folder/slurm.conf SLURM_TIME_FORMAT=%s
  start_munge "$folder"
  start_database "$folder"
  start "$folder" slurmdbd slurmdbd -D
  within 30 sacctmgr -n list cluster || failed_start "$folder" slurmdbd
  sacctmgr -i add cluster test >/dev/null
  start "$folder" slurmctld slurmctld -D
  within 30 scontrol ping || failed_start "$folder" slurmctld
  start "$folder" slurmd-n1 slurmd -D -N n1
  start "$folder" slurmd-n2 slurmd -D -N n2
  within 30 both_nodes_idle || failed_start "$folder" slurmd-n1
}

# stop_cluster FOLDER: ends all daemons, the last one started first, then the processes they left.
stop_cluster() {
  local i pid
  [ -z "${SLURM_CONF:-}" ] || timeout 10 scancel --user=root 2>/dev/null || true
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do
    pid=${daemons[i]}
    kill "$pid" 2>/dev/null || continue
    within 10 ended "$pid" || kill -KILL "$pid" 2>/dev/null || true
  done
  daemons=()
  end_leftovers "$1"
}

# Job steps outlive a stopped slurmd, because they wait for it. They are recognized by the
# configuration file in their environment.
end_leftovers() {
  local environment pid
  for environment in /proc/[0-9]*/environ; do
    pid=${environment//[^0-9]/}
    if grep -qzsxF "SLURM_CONF=$1/slurm.conf" "$environment" && ! is_relative "$pid"; then
      kill -KILL "$pid" 2>/dev/null || true
    fi
  done
}

# True if a process is an ancestor or child of this shell; these have the configuration file too.
is_relative() {
  local each=$$
  while [ "$each" -gt 1 ]; do
    [ "$each" != "$1" ] || return 0
    each=$(awk '/^PPid:/ { print $2 }' "/proc/$each/status")
  done
  [ "$(awk '/^PPid:/ { print $2 }' "/proc/$1/status" 2>/dev/null)" = $$ ]
}

start() {
  local folder=$1 name=$2
  shift 2
  "$@" >"$folder/logs/$name.out" 2>&1 </dev/null &
  daemons+=($!)
}

start_munge() {
  dd if=/dev/urandom of="$1/munge/key" bs=128 count=1 status=none
  chmod 600 "$1/munge/key"
  # --force: a parent of the folder is writable by all users.
  start "$1" munged munged --foreground --force --key-file="$1/munge/key" \
    --socket="$1/munge.socket" --pid-file="$1/munge/pid" --seed-file="$1/munge/seed" \
    --log-file="$1/logs/munged.log"
  within 10 test -S "$1/munge.socket" || failed_start "$1" munged
}

start_database() {
  local unsynced=(--innodb-flush-method=nosync --innodb-doublewrite=0) # it lives for minutes
  mariadb-install-db --no-defaults --user=root --datadir="$1/database" "${unsynced[@]}" \
    --auth-root-authentication-method=normal --skip-test-db >"$1/logs/database.install" 2>&1
  export MYSQL_UNIX_PORT=$1/database.socket
  start "$1" mariadbd mariadbd --no-defaults --user=root --datadir="$1/database" \
    --socket="$MYSQL_UNIX_PORT" --pid-file="$1/database.pid" --skip-networking \
    --innodb-lock-wait-timeout=900 "${unsynced[@]}"
  within 30 mariadb-admin --no-defaults --socket="$MYSQL_UNIX_PORT" ping ||
    failed_start "$1" mariadbd
}

write_configuration() {
  local folder=$1 cpus=$2
  cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until its previous credential expires, 120 s by default.
AuthInfo=socket=$folder/munge.socket,cred_expire=15
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/logs/slurmctld.log
SlurmdLogFile=$folder/logs/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
KillWait=10
MinJobAge=300
# A requeued job starts again at once instead of at the next minute.
SchedulerParameters=sched_interval=2,bf_interval=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStoragePass=$folder/munge.socket
AccountingStorageHost=127.0.0.1
AccountingStoragePort=${ports[1]}
NodeName=n1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=$cpus
NodeName=n2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=${ports[3]} CPUs=$cpus
PartitionName=work Nodes=n1,n2 Default=YES MaxTime=60 GraceTime=60 PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=60 PriorityTier=2
CONF
  cat >"$folder/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
DbdHost=localhost
DbdPort=${ports[1]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
LogFile=$folder/logs/slurmdbd.log
PidFile=$folder/slurmdbd.pid
CONF
  chmod 600 "$folder/slurmdbd.conf"
}

failed_start() {
  echo "error: $2 did not start:" >&2
  tail -n 5 "$1/logs/$2"* >&2
  exit 1
}

both_nodes_idle() {
  [ "$(sinfo -h -N -p work -o %t | grep -cx idle)" = 2 ]
}

ended() {
  ! kill -0 "$1" 2>/dev/null
}

# within SECONDS COMMAND...: repeats it until it succeeds.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.2
  done
}

free_ports() {
  python3 - "$1" <<'PYTHON'
import socket, sys

sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for each in sockets:
    each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))
PYTHON
}
