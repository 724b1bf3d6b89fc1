/**
 * Program and arguments that run the command which follows in a mount namespace of its own: with copies of
 * the host's mounts and of what is mounted below `keep`, and of nothing that other tests have mounted by then
 * (every scratch folder has a name with `gw-`), who would be held by it for as long as it runs.
 */
export function withMountsOf(keep: string): [string, ...string[]] {
  const others = `awk -v keep="$0" 'index($5, "/gw-") && index($5, keep) != 1 { print $5 }' /proc/self/mountinfo`;
  const script = `${others} | tac | while read -r place; do umount --lazy "$place"; done; exec "$@"`;
  return ['unshare', '--mount', '--propagation', 'private', 'sh', '-c', script, keep];
}
