// The place of an address, where one place shares a limit. Pure.
/** `host:port`, or a bare address. An owner of an IPv6 address usually has 2^64 of them, so its /64 counts. */
export function placeOf(address: string): string {
  const v4 = /(?:^|:)(\d{1,3}(?:\.\d{1,3}){3})(?:]?:\d+)?$/.exec(address)?.[1]
  if (v4 !== undefined) return v4
  const bracketed = /^\[([0-9a-fA-F:]+)(?:%[^\]]*)?\]/.exec(address)?.[1]
  const groups = (bracketed ?? address).split(':')
  // `::1:4711` without brackets is ambiguous; the first four groups, which are the network, are not.
  if (groups.length < 3) return groups[0] ?? address
  const head = (bracketed ?? address).split('::')[0]!.split(':')
  return [...head, '0', '0', '0', '0']
    .slice(0, 4)
    .map(group => (group === '' ? '0' : group.toLowerCase().replace(/^0+(?=.)/, '')))
    .join(':')
}
