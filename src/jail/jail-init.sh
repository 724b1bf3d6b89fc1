# First program inside the namespaces of a machine, run as:
#     sh jail-init.sh JAIL HOSTNAME NETWORK DIRECTORY CGROUPS FOLDERS DEVICES COMMAND...
#
#   JAIL       folder of the host; the machine's tmpfs is mounted over it. Beside it: JAIL.fstab.overlay, JAIL.fstab.bind
#   NETWORK    host or none
#   DIRECTORY  in which the command starts, as the machine sees it
#   CGROUPS    one cgroup.procs file a line
#   FOLDERS    made in the tmpfs, one a line, relative
#   DEVICES    of the host, copied to the machine's /dev, one a line
#   COMMAND    the rest: what this script becomes
#
# It runs with the host's own environment and programs; those of the machine come in only at the last line. Descriptor 3 is a
# socket to the shim, one line each: "pid N" (as the host counts), "note TEXT", "built", and last "error STEP" or "ready". After
# "built" it waits for a line of the shim: the target of a move has its jail ready before the machine stops at the source. When the
# shim ends without a word, so does this.
set -eu
umask 022
step='reading its arguments'
trap 'echo "error $step" >&3' EXIT
jail=$1 hostname=$2 network=$3 directory=$4 cgroups=$5 folders=$6 devices=$7
shift 7
root=$jail/root

step='joining the cgroups'
newline='
'
IFS=$newline
for procs in $cgroups; do echo 0 >"$procs"; done
# The shim is protected from the OOM killer; the machine is not.
echo 0 >/proc/self/oom_score_adj
# This /proc is still the host's: it names the process as the host does.
read -r line </proc/self/stat
echo "pid ${line%% *}" >&3

step='naming the host'
echo "$hostname" >/proc/sys/kernel/hostname
if [ "$network" = none ]; then
  step='starting the loopback interface (ip of the package iproute2)'
  ip link set lo up
fi

step='making the throw-away root'
mount -n -t tmpfs -o mode=755 tmpfs "$jail"
cd "$jail"
# shellcheck disable=SC2086 # split at newlines on purpose
mkdir -p $folders
for device in $devices; do cp -a "$device" "${device#/}"; done
unset IFS
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/fd /dev/stdin /dev/stdout /dev/stderr dev/
if mount -n -t overlay -o "lowerdir=/,upperdir=$jail/upper,workdir=$jail/work" overlay "$root"; then
  fstab=$jail.fstab.overlay
else
  echo 'note no overlay filesystem here: the machine writes to the root of its host outside its volume' >&3
  mount -n --bind / "$root"
  fstab=$jail.fstab.bind
fi
mount -n -a -T "$fstab"

step='entering the root'
cd "$root"
pivot_root . run/.host
# Nothing of the host stays mounted here: a copy of another machine's mount would keep its volume busy.
umount -n -l run/.host

step='waiting for its start'
echo built >&3
read -r _ <&3

step="entering the working directory $directory"
cd "$directory"

step="executing $1"
echo ready >&3
exec "$@" 3>&-
