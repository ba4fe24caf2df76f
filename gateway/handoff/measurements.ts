// What others measure: users' latency, radio and place, and links between sites. Pure but for Ed25519: bytes and the
// time in, a measurement or a refusal out. Always holds: a measurement is checked before anybody sees it, and changes
// nothing here unless it is taken; only what names sites and VMs of this gateway is taken; what is older than its kind
// lives, or dated in the future, is refused however it was delivered; of one user and kind, and of one link, only newer
// ones pass. All that is remembered is bounded by VMs, sites and the limits below, and lapses.
import type { KeyObject } from 'node:crypto'
import { verifySignature } from '../../crypto/command-keys.ts'
import { CHANNELS, PAYLOAD_BYTES_MAX } from '../../mqtt/channels.ts'
import type { Latency, Location, Radio, Signature, SiteLink } from '../../mqtt/schemas.ts'
import { MEASURED, type MeasuredKind, type Topic, type Topics } from '../../mqtt/topics.ts'
import { GodwitError, hasCode } from '../../wire/errors.ts'
import { check, parseJson } from '../../wire/schema.ts'
import { createUsers } from './users.ts'

type Meta = {
  /** Unix ms: when the gateway had it. */ receivedAtMs: number /** Name of the measurement key that signed it. */
  signedBy?: string
}
export type Measurement =
  | ({ kind: 'latency'; ueKey: string; value: Latency } & Meta)
  | ({ kind: 'radio'; ueKey: string; value: Radio } & Meta)
  | ({ kind: 'location'; ueKey: string; value: Location } & Meta)
  | ({ kind: 'link'; site: string; peer: string; value: SiteLink } & Meta)

/**
 * `unknown`: of a site, VM or user that this gateway does not have. `old`: by its `seq` or its time. `future`: dated
 * ahead of our clock. `limit`: too many users. `estimate`: of a gateway, ours among them. `unsigned`: without a
 * signature where one is needed. `forged`: with a signature that does not hold.
 */
const OUTCOMES = ['taken', 'malformed', 'oversized', 'unknown', 'old', 'future', 'limit', 'estimate', 'unsigned', 'forged'] as const
export type MeasurementOutcome = (typeof OUTCOMES)[number]
type Refusal = Exclude<MeasurementOutcome, 'taken'>
type Taken = { outcome: 'taken'; measurement: Measurement } | { outcome: Refusal; why: string }

/** Users and kinds, and links, whose last measurement is remembered. */
const SEQUENCES_MAX = 100_000
/** A sender that was silent for so long may count from the beginning again. */
export const SILENCE_MS = 10_000
/** The clock of a measuring system may be this far off, ms. */
const CLOCK_SKEW_MS = 5_000
/** A signed measurement is remembered for longer than it lives, so that it cannot be played again. */
const REMEMBERED_MS = 120_000

export type MeasurementKey = { name: string; key: KeyObject; kinds: readonly MeasuredKind[] }
type MeasurementsOptions = {
  topics: Topics
  keys?: readonly MeasurementKey[]
  /** Measurements without a signature are refused. */
  isSignatureNeeded?: boolean
  isSite(name: string): boolean
  isVm(name: string): boolean
}

export type Measurements = {
  take(topic: Topic, payload: Uint8Array, nowMs: number): Taken
  /** Forgets users of VMs that are gone, and what is too old to decide anything. */
  tidy(nowMs: number): void
  /** What is remembered now. */
  size(): { sequences: number; users: number }
}

type Value = { seq?: number; via?: string; at?: string; sampledAt?: string; vmId?: string; targetSite?: string; sig?: Signature }
type Last = { seq: number | undefined; atMs: number | undefined; receivedAtMs: number }

class Refused extends Error {
  readonly outcome: Refusal

  constructor(outcome: Refusal, why: string) {
    super(why)
    this.outcome = outcome
  }
}

export const isMeasured = (kind: Topic['kind']): kind is MeasuredKind => (MEASURED as readonly string[]).includes(kind)

export function createMeasurements({ topics, keys = [], isSignatureNeeded = false, isSite, isVm }: MeasurementsOptions): Measurements {
  const byName = new Map(keys.map(key => [key.name, key]))
  /** In order of coming. */
  const last = new Map<string, Last>()
  const users = createUsers()

  function checkKnown(kind: MeasuredKind, { siteId, peerId, ueKey }: Topic['parameters'], { vmId, targetSite }: Value): void {
    if (kind === 'siteLink') {
      for (const site of [siteId!, peerId!]) if (!isSite(site)) throw new Refused('unknown', `unknown site '${site}'`)
    } else if (kind === 'latency') {
      if (!isVm(vmId!)) throw new Refused('unknown', `unknown VM '${vmId}'`)
      if (!isSite(targetSite!)) throw new Refused('unknown', `unknown site '${targetSite}'`)
    } else if (!users.has(ueKey!)) throw new Refused('unknown', 'no latency of this user to a VM was measured before')
  }

  /** The name of the key that signed it; undefined for one without a signature. */
  function signerOf(topic: Topic, kind: MeasuredKind, raw: Record<string, unknown>, { sig, at, sampledAt }: Value): string | undefined {
    if (!sig) {
      if (isSignatureNeeded) throw new Refused('unsigned', 'the measurement must be signed (mqtt.measurementKeys)')
      return undefined
    }
    const known = byName.get(sig.key)
    if (!known) throw new Refused('forged', `unknown measurement key '${sig.key}'`)
    if (!known.kinds.includes(kind)) throw new Refused('forged', `measurement key '${sig.key}' is not allowed for ${kind}`)
    if (at === undefined && sampledAt === undefined) throw new Refused('malformed', 'at: is required in a signed measurement')
    if (!verifySignature(known.key, topics.build(kind, topic.parameters), raw, sig.value))
      throw new Refused('forged', `the signature of key '${sig.key}' is wrong`)
    return sig.key
  }

  function checkNew(key: string, { seq }: Value, atMs: number | undefined, nowMs: number): void {
    const before = last.get(key)
    if (before && !isNewer(before, seq, atMs, nowMs))
      throw new Refused(
        'old',
        seq === undefined ? 'not newer than the previous measurement' : `seq ${seq} is not newer than the previous one`,
      )
    last.delete(key)
    last.set(key, { seq, atMs, receivedAtMs: nowMs })
    forget(nowMs)
    if (last.size > SEQUENCES_MAX) last.delete(last.keys().next().value!)
  }

  function forget(nowMs: number): void {
    for (const [key, { receivedAtMs }] of last) {
      if (nowMs - receivedAtMs < REMEMBERED_MS) return
      last.delete(key)
    }
  }

  function take(topic: Topic, kind: MeasuredKind, payload: Uint8Array, nowMs: number): Measurement {
    if (payload.length > PAYLOAD_BYTES_MAX) throw new Refused('oversized', `${payload.length} bytes, the limit is ${PAYLOAD_BYTES_MAX}`)
    const raw = parseJson(payload, { what: kind })
    const value = check(CHANNELS[kind].schema, raw, { what: kind }) as Value
    const { parameters } = topic
    if (value.via !== undefined) throw new Refused('estimate', `estimated by gateway '${value.via}'`)
    checkKnown(kind, parameters, value)
    const atMs = timeOf(value)
    if (atMs !== undefined) checkAge(kind, atMs, nowMs)
    const signedBy = signerOf(topic, kind, raw as Record<string, unknown>, value)
    const meta = { receivedAtMs: nowMs, ...(signedBy === undefined ? {} : { signedBy }) }
    const { sig: _, ...rest } = value
    if (kind === 'siteLink') {
      checkNew(`${kind} ${parameters.siteId} ${parameters.peerId}`, value, atMs, nowMs)
      return { kind: 'link', site: parameters.siteId!, peer: parameters.peerId!, ...meta, value: rest as SiteLink }
    }
    const ueKey = parameters.ueKey!
    if (kind === 'latency' && !users.seen(value.vmId!, ueKey, nowMs)) throw new Refused('limit', `VM '${value.vmId}' has too many users`)
    if (value.seq !== undefined || atMs !== undefined) checkNew(`${kind} ${ueKey}`, value, atMs, nowMs)
    return { kind, ueKey, ...meta, value: rest } as Measurement
  }

  return {
    take(topic, payload, nowMs) {
      const { kind } = topic
      if (!isMeasured(kind)) throw new GodwitError('INTERNAL', `${kind} is not a measurement`)
      try {
        return { outcome: 'taken', measurement: take(topic, kind, payload, nowMs) }
      } catch (error) {
        if (error instanceof Refused) return { outcome: error.outcome, why: error.message }
        if (!hasCode(error, 'FRAME_MALFORMED')) throw error
        return { outcome: 'malformed', why: (error as Error).message }
      }
    },
    tidy(nowMs) {
      forget(nowMs)
      users.tidy(isVm, nowMs)
    },
    size: () => ({ sequences: last.size, users: users.count }),
  }
}

function timeOf({ at, sampledAt }: Value): number | undefined {
  const text = at ?? sampledAt
  return text === undefined ? undefined : Date.parse(text)
}

function checkAge(kind: MeasuredKind, atMs: number, nowMs: number): void {
  const livesMs = (CHANNELS[kind].expirySeconds ?? 0) * 1000
  if (nowMs - atMs > livesMs + CLOCK_SKEW_MS)
    throw new Refused('old', `measured ${Math.round((nowMs - atMs) / 1000)} s ago; it expires after ${livesMs / 1000} s`)
  if (atMs - nowMs > CLOCK_SKEW_MS) throw new Refused('future', `dated ${Math.round((atMs - nowMs) / 1000)} s ahead of the gateway's clock`)
}

function isNewer(before: Last, seq: number | undefined, atMs: number | undefined, nowMs: number): boolean {
  const isRising = seq !== undefined && before.seq !== undefined && seq > before.seq
  if (atMs !== undefined && before.atMs !== undefined) return atMs > before.atMs || (atMs === before.atMs && isRising)
  return isRising || seq === undefined || before.seq === undefined || nowMs - before.receivedAtMs >= SILENCE_MS
}
