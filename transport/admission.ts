// How many strangers may be at the door at once: all together, and from one place. Enters: addresses of those who have proved nothing yet. Leaves: a place, or none.
// Always holds: one place (an IPv4 address, an IPv6 /64) cannot take all of them; each is given back once. Pure.

export type AdmissionLimits = { total: number; perAddress: number }

export type Admission = {
  /** Takes a place; the function gives it back. undefined: there is none. */
  enter(address: string): (() => void) | undefined
  readonly count: number
}

export function createAdmission({ total, perAddress }: AdmissionLimits): Admission {
  const byPlace = new Map<string, number>()
  let count = 0
  return {
    enter(address) {
      const place = placeOf(address)
      const there = byPlace.get(place) ?? 0
      if (count >= total || there >= perAddress) return undefined
      byPlace.set(place, there + 1)
      count += 1
      let isLeft = false
      return () => {
        if (isLeft) return
        isLeft = true
        count -= 1
        const left = (byPlace.get(place) ?? 1) - 1
        if (left > 0) byPlace.set(place, left)
        else byPlace.delete(place)
      }
    },
    get count() {
      return count
    },
  }
}

/** `host:port`, or a bare address. Who has an IPv6 address mostly has 2^64 of them: its /64 counts. */
export function placeOf(address: string): string {
  const v4 = /(?:^|:)(\d{1,3}(?:\.\d{1,3}){3})(?:]?:\d+)?$/.exec(address)?.[1]
  if (v4 !== undefined) return v4
  const bracketed = /^\[([0-9a-fA-F:]+)(?:%[^\]]*)?\]/.exec(address)?.[1]
  const groups = (bracketed ?? address).split(':')
  // `::1:4711` without brackets is ambiguous; the first four groups, which name the network, are not.
  if (groups.length < 3) return groups[0] ?? address
  const head = (bracketed ?? address).split('::')[0]!.split(':')
  return [...head, '0', '0', '0', '0']
    .slice(0, 4)
    .map(group => (group === '' ? '0' : group.toLowerCase().replace(/^0+(?=.)/, '')))
    .join(':')
}
