// Named links. The figures are round numbers in the range of public measurements for each kind of access; no trace is
// copied. `up` is from the site to the gateway. A queue has about one bandwidth-delay product, more for technologies
// with known deep queues.
import type { LinkModelOptions } from './link.ts'
import { burstLoss } from './loss.ts'

type Profile = { description: string; up: LinkModelOptions; down: LinkModelOptions }

const mbit = (megabits: number): number => megabits * 1_000_000
const MTU_BYTES = 1500

type Direction = { mbitPerSecond: number; oneWayMs: number; queueMs: number } & Omit<
  Partial<LinkModelOptions>,
  'rate' | 'delayMs' | 'queueBytes'
>

/** A direction of constant rate; the queue holds `queueMs` of it, and at least 32 packets. */
function direction({ mbitPerSecond, oneWayMs, queueMs, ...rest }: Direction): LinkModelOptions {
  const queueBytes = Math.max(32 * MTU_BYTES, Math.round((mbit(mbitPerSecond) / 8000) * queueMs))
  return { rate: { bitsPerSecond: mbit(mbitPerSecond) }, delayMs: oneWayMs, queueBytes, mtuBytes: MTU_BYTES, ...rest }
}

const symmetric = (description: string, both: Direction): Profile => ({ description, up: direction(both), down: direction(both) })

/** A minute of driving: cells of different strength, each with its own rate. */
function driving(peakMbit: number): LinkModelOptions {
  const shares = [0.6, 1, 0.75, 0.3, 0.12, 0.45, 0.9, 0.5, 0.2, 0.7, 0.35, 0.8]
  const steps = shares.map((share, at) => ({ atMs: at * 5000, bitsPerSecond: mbit(peakMbit * share) }))
  return {
    rate: { steps, repeatMs: shares.length * 5000 },
    delayMs: 25,
    jitterMs: 12,
    loss: burstLoss(0.001, 4),
    queueBytes: Math.round((mbit(peakMbit) / 8000) * 120),
    blackouts: [{ startMs: 10_900, durationMs: 300, everyMs: 11_000 }],
    mtuBytes: MTU_BYTES,
  }
}

export const profiles = {
  demo: symmetric('100 Mbit/s, 40 ms round trip, no loss: the link of npm run demo', { mbitPerSecond: 100, oneWayMs: 20, queueMs: 40 }),
  '5g-sa': {
    description: '5G standalone, good cell: 300 down, 60 up Mbit/s, 20 ms',
    up: direction({ mbitPerSecond: 60, oneWayMs: 10, queueMs: 60, jitterMs: 4, loss: { ratio: 0.0002 } }),
    down: direction({ mbitPerSecond: 300, oneWayMs: 10, queueMs: 60, jitterMs: 3, loss: { ratio: 0.0001 } }),
  },
  '5g-nsa-driving': {
    description: '5G non-standalone from a moving car: rate changes every 5 s, a 300 ms handover every 11 s, 50 ms, short loss bursts',
    up: driving(50),
    down: driving(200),
  },
  lte: {
    description: 'LTE: 40 down, 12 up Mbit/s, 50 ms, deep queues',
    up: direction({ mbitPerSecond: 12, oneWayMs: 25, queueMs: 400, jitterMs: 10, loss: { ratio: 0.0005 } }),
    down: direction({ mbitPerSecond: 40, oneWayMs: 25, queueMs: 300, jitterMs: 8, loss: { ratio: 0.0003 } }),
  },
  'fibre-metro': symmetric('metro fibre: 1 Gbit/s, 5 ms', { mbitPerSecond: 1000, oneWayMs: 2.5, queueMs: 10 }),
  dsl: {
    description: 'VDSL: 50 down, 10 up Mbit/s, 25 ms',
    up: direction({ mbitPerSecond: 10, oneWayMs: 12.5, queueMs: 150, jitterMs: 1 }),
    down: direction({ mbitPerSecond: 50, oneWayMs: 12.5, queueMs: 80, jitterMs: 1 }),
  },
  microwave: symmetric('point-to-point microwave: 200 Mbit/s, 10 ms, rain-fade bursts', {
    mbitPerSecond: 200,
    oneWayMs: 5,
    queueMs: 20,
    jitterMs: 1,
    loss: burstLoss(0.0005, 20),
  }),
  'geo-satellite': symmetric('geostationary satellite: 20 Mbit/s, 600 ms, 0.5 % loss', {
    mbitPerSecond: 20,
    oneWayMs: 300,
    queueMs: 600,
    loss: { ratio: 0.005 },
  }),
  'wan-continental': symmetric('continental WAN: 200 Mbit/s, 150 ms, 0.1 % loss', {
    mbitPerSecond: 200,
    oneWayMs: 75,
    queueMs: 100,
    loss: { ratio: 0.001 },
  }),
} as const satisfies Record<string, Profile>

type ProfileName = keyof typeof profiles

/** The profile of this name, or undefined. */
export const profileOf = (name: string): Profile | undefined => (Object.hasOwn(profiles, name) ? profiles[name as ProfileName] : undefined)
