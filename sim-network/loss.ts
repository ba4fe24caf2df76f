// Packet loss of a link. Enters: one call for each packet, in order. Leaves: lost or not. Burst loss is the
// Gilbert-Elliott chain (Gilbert 1960, Elliott 1963), one step for each packet.
import type { Random } from './random.ts'

type BurstLoss = {
  /** Probability per packet that the good state becomes bad. */
  goodToBad: number
  /** Probability per packet that the bad state becomes good: the mean stay in it is 1 / badToGood packets. */
  badToGood: number
  /** Loss ratio within each state. Default 0 and 1. */
  lossGood?: number
  lossBad?: number
}

export type Loss = { /** Independent loss ratio, 0..1. */ ratio: number } | { burst: BurstLoss }

/** Gilbert-Elliott parameters that lose `ratio` of all packets in bursts of `meanBurstPackets` (all lost while bad). */
export function burstLoss(ratio: number, meanBurstPackets: number): Loss {
  if (!(ratio >= 0 && ratio < 1)) throw new TypeError('loss ratio must be in [0, 1)')
  if (!(meanBurstPackets >= 1)) throw new TypeError('a burst has at least one packet')
  const badToGood = 1 / meanBurstPackets
  const goodToBad = (badToGood * ratio) / (1 - ratio)
  if (goodToBad > 1) throw new TypeError('this ratio needs longer bursts')
  return { burst: { goodToBad, badToGood } }
}

/** Call `lost()` once for every packet. */
export function createLossModel(loss: Loss | undefined, random: Random): { lost(): boolean } {
  if (!loss) return { lost: () => false }
  if ('ratio' in loss) {
    probability('loss.ratio', loss.ratio)
    return { lost: () => random.chance(loss.ratio) }
  }
  const { goodToBad, badToGood, lossGood = 0, lossBad = 1 } = loss.burst
  for (const [name, value] of Object.entries({ goodToBad, badToGood, lossGood, lossBad })) probability(`loss.burst.${name}`, value)
  let bad = false
  return {
    lost: () => {
      bad = bad ? !random.chance(badToGood) : random.chance(goodToBad)
      return random.chance(bad ? lossBad : lossGood)
    },
  }
}

function probability(name: string, value: number): void {
  if (!(value >= 0 && value <= 1)) throw new TypeError(`${name} must be between 0 and 1, not ${value}`)
}
