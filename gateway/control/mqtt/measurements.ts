// What others measure: users' latency, radio and place, and links between sites. Pure: bytes and the time in, a measurement or a refusal out.
// Always holds: a measurement is checked before anybody sees it; of one user and kind only newer ones pass (by `seq`), however they were
// delivered; what is remembered of users is bounded, the longest silent are forgotten first.
import { hasCode } from '../../../wire/errors.ts'
import { checkJson } from '../../../wire/schema.ts'
import { CHANNELS, PAYLOAD_BYTES_MAX } from './channels.ts'
import type { Latency, Location, Radio, SiteLink } from './schemas.ts'
import type { Topic } from './topics.ts'

type Meta = { ueKey: string /** Unix ms: when the gateway had it. */; receivedAtMs: number }
export type Measurement =
  | ({ kind: 'latency' } & Meta & { value: Latency })
  | ({ kind: 'radio' } & Meta & { value: Radio })
  | ({ kind: 'location' } & Meta & { value: Location })
  | { kind: 'link'; site: string; peer: string; receivedAtMs: number; value: SiteLink }

export const OUTCOMES = ['taken', 'malformed', 'oversized', 'old'] as const
export type Outcome = (typeof OUTCOMES)[number]
export type Taken = { outcome: 'taken'; measurement: Measurement } | { outcome: Exclude<Outcome, 'taken'>; why: string }

/** Users and kinds whose last `seq` is remembered. */
export const SEQUENCES_MAX = 100_000
/** A sender that was silent for so long may count from the beginning again. */
export const SILENCE_MS = 10_000

export type Measurements = { take(topic: Topic, payload: Uint8Array, nowMs: number): Taken }

export function createMeasurements(): Measurements {
  const last = new Map<string, { seq: number; atMs: number }>()

  function isNew(key: string, seq: number, nowMs: number): boolean {
    const before = last.get(key)
    if (before && seq <= before.seq && nowMs - before.atMs < SILENCE_MS) return false
    last.delete(key)
    last.set(key, { seq, atMs: nowMs })
    if (last.size > SEQUENCES_MAX) last.delete(last.keys().next().value!)
    return true
  }

  return {
    take({ kind, parameters }, payload, nowMs) {
      if (payload.length > PAYLOAD_BYTES_MAX) return { outcome: 'oversized', why: `${payload.length} bytes` }
      try {
        const value = checkJson(CHANNELS[kind].schema, payload, { what: kind })
        if (kind === 'siteLink')
          return {
            outcome: 'taken',
            measurement: {
              kind: 'link',
              site: parameters.siteId!,
              peer: parameters.peerId!,
              receivedAtMs: nowMs,
              value: value as SiteLink,
            },
          }
        const ueKey = parameters.ueKey!
        const seq = (value as { seq?: number }).seq
        if (seq !== undefined && !isNew(`${kind} ${ueKey}`, seq, nowMs)) return { outcome: 'old', why: `seq ${seq}` }
        return { outcome: 'taken', measurement: { kind, ueKey, receivedAtMs: nowMs, value } as Measurement }
      } catch (error) {
        if (!hasCode(error, 'FRAME_MALFORMED')) throw error
        return { outcome: 'malformed', why: (error as Error).message }
      }
    },
  }
}
