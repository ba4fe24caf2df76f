// Limits of unauthenticated peers: in total, and from one place. Enters: addresses of unauthenticated peers. Leaves: a
// slot, or none. Always holds: one place (an IPv4 address, an IPv6 /64) cannot occupy all slots; each slot is released
// once. Pure.

import { placeOf } from '../ops/place.ts'

export { placeOf }

export type AdmissionLimits = { total: number; perAddress: number }

export type Admission = {
  /** Takes a slot; the returned function releases it. undefined: no free slot. */
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
