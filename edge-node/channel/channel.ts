// The end-to-end channel between two nodes: Noise KK with X-Wing over the control stream, then sealed frames on it in
// both directions.
// Enters: a relay stream, the plan as this side received it, both certificates. Leaves: a Channel or HANDSHAKE_FAILED.
// Always holds: plan, certificates and protocol version are in the prologue, so the handshake fails if a relay sends
// the two sides different plans; no guest byte moves before message 2.
import { utf8 } from '../../crypto/bytes.ts'
import { finish, readMessage, startHandshake, writeMessage } from '../../crypto/channel/handshake.ts'
import { deriveStreamKey } from '../../crypto/channel/keys.ts'
import { encodePrologue } from '../../crypto/channel/prologue.ts'
import { hashBytes } from '../../crypto/hash.ts'
import type { SiteKeys } from '../../crypto/identity.ts'
import { within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import { canonicalJson } from '../../wire/canonical.ts'
import type { Plan, Side } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { encodeFrame, type Frame, FrameDecoder } from '../../wire/frame.ts'
import type { Direction } from '../../wire/roles.ts'
import { CONTROL, framesOf, indexOf, type Role, traitsOf } from '../../wire/roles.ts'
import { allow, FRAME, type FrameName } from '../../wire/types.ts'
import type { Gate } from '../rate/gate.ts'
import { createSealedReader, createSealedWriter, type SealedReader, type SealedWriter } from './sealed-stream.ts'

export type Channel = {
  readonly rootKey: Uint8Array
  /** Control frames to the peer; flushed at once. */
  send(type: number, payload: Uint8Array): Promise<void>
  frames(): AsyncGenerator<Frame, void>
  /**
   * A further stream of this channel, sealed from source to target. `from`: how many of its frames earlier meetings
   * have brought; both ends use the same number. Without a gate only the transport bounds what is in flight.
   */
  writer(stream: Stream, role: Role, gate?: Gate, from?: number): SealedWriter
  reader(stream: Stream, role: Role, allowed: FrameName[], onReceived: (bytes: number) => void, from?: number): SealedReader
  /** The final record of this side's control stream, then half-close. */
  finish(): Promise<void>
  reset(reason: string): void
  readonly wireBytes: number
}

/** What a channel is bound to: a migration's plan, or that of another transfer (images/messages.ts). */
export type ChannelPlan = Pick<Plan, 'version' | 'migrationId' | 'vm' | 'epoch' | 'attempt' | 'compression'>

export type ChannelOptions<P extends ChannelPlan = Plan> = {
  side: Side
  stream: Stream
  plan: P
  keys: SiteKeys
  /** Canonical certificate bytes, bound into the prologue. */
  sourceCertificate: Uint8Array
  targetCertificate: Uint8Array
  /** The peer's X25519 key, from its verified certificate. */
  peerBoxPublic: Uint8Array
  timeoutMs?: number
  /** Told at once when the handshake fails or a stream of this channel is not what was sent. */
  onBreach?: ((error: GodwitError) => void) | undefined
}

const HANDSHAKE_TIMEOUT_MS = 15_000

/**
 * What both sides must agree on, to the byte: the plan is hashed as canonical JSON, with fields that this version
 * does not know.
 */
export function prologueOf(plan: ChannelPlan, sourceCertificate: Uint8Array, targetCertificate: Uint8Array): Uint8Array {
  const { version, migrationId, vm, epoch, attempt, compression } = plan
  const planHash = hashBytes(utf8(canonicalJson(plan)))
  return encodePrologue({ version, migrationId, vm, epoch, attempt, compression, sourceCertificate, targetCertificate, planHash })
}

/** Performs the handshake; the source begins. */
export async function openChannel(options: ChannelOptions<ChannelPlan>): Promise<Channel> {
  const { side, stream, timeoutMs = HANDSHAKE_TIMEOUT_MS } = options
  try {
    const result = await within(side === 'source' ? initiate(options) : respond(options), {
      ms: timeoutMs,
      what: 'end-to-end handshake',
      code: 'HANDSHAKE_FAILED',
    })
    return createChannel(options, result)
  } catch (error) {
    tell(options.onBreach, error)
    stream.reset('handshake failed')
    throw error
  }
}

function begin({ side, plan, keys, sourceCertificate, targetCertificate, peerBoxPublic }: ChannelOptions<ChannelPlan>) {
  return startHandshake({
    role: side === 'source' ? 'initiator' : 'responder',
    hybrid: true,
    local: { boxPublic: keys.boxPublic, boxSecret: keys.boxSecret },
    remotePublic: peerBoxPublic,
    prologue: prologueOf(plan, sourceCertificate, targetCertificate),
  })
}

const nothing = new Uint8Array(0)

async function initiate(options: ChannelOptions<ChannelPlan>): Promise<Uint8Array> {
  const first = writeMessage(begin(options), nothing)
  await options.stream.write(encodeFrame(FRAME.HANDSHAKE_1, first.message))
  const reply = await readFrame(options.stream, 'HANDSHAKE_2')
  return finish(readMessage(first.state, reply).state).rootKey
}

async function respond(options: ChannelOptions<ChannelPlan>): Promise<Uint8Array> {
  const message = await readFrame(options.stream, 'HANDSHAKE_1')
  const second = writeMessage(readMessage(begin(options), message).state, nothing)
  await options.stream.write(encodeFrame(FRAME.HANDSHAKE_2, second.message))
  return finish(second.state).rootKey
}

/** Exactly one frame; bytes after it would belong to records that the peer cannot have sent yet. */
async function readFrame(stream: Stream, name: FrameName): Promise<Uint8Array> {
  const decoder = new FrameDecoder(allow(name))
  for (;;) {
    const chunk = await stream.read()
    if (chunk === null) throw new GodwitError('HANDSHAKE_FAILED', 'the other side ended the handshake: its plan or its keys differ')
    const [frame, ...more] = decoder.push(chunk)
    if (more.length > 0 || (frame && decoder.pendingBytes > 0))
      throw new GodwitError('HANDSHAKE_FAILED', 'unexpected bytes during the handshake')
    if (frame) return frame.payload.slice()
  }
}

/** A stream that is reset or lost is no breach: links break. */
function tell(onBreach: ChannelOptions['onBreach'], error: unknown): void {
  if (error instanceof GodwitError && /^(HANDSHAKE_FAILED|DECRYPT_FAILED|FRAME_)/.test(error.code)) onBreach?.(error)
}

function createChannel({ side, stream, plan, onBreach }: ChannelOptions<ChannelPlan>, rootKey: Uint8Array): Channel {
  const there: Direction = side === 'source' ? 'source-to-target' : 'target-to-source'
  const back: Direction = side === 'source' ? 'target-to-source' : 'source-to-target'
  const sealing = (direction: Direction, role: Role, from = 0) => {
    const index = indexOf(role)
    return {
      key: deriveStreamKey(rootKey, { direction, index, attempt: plan.attempt }),
      context: { migrationId: plan.migrationId, epoch: plan.epoch, index, direction, from },
    }
  }
  const onError = (error: GodwitError) => tell(onBreach, error)
  const out = createSealedWriter({ stream, ...sealing(there, CONTROL) })
  const incoming = createSealedReader({ stream, ...sealing(back, CONTROL), allowed: framesOf(CONTROL), onError })
  return {
    rootKey,
    async send(type, payload) {
      await out.send(type, payload)
      await out.flush()
    },
    frames: () => incoming.frames(),
    writer: (data, role, gate, from) => {
      const { traffic } = traitsOf(role)
      const pass = traffic === null || gate === undefined ? {} : { gate, traffic }
      return createSealedWriter({ stream: data, ...sealing('source-to-target', role, from), ...pass })
    },
    reader: (data, role, allowed, onReceived, from) =>
      createSealedReader({ stream: data, ...sealing('source-to-target', role, from), allowed, onReceived, onError }),
    finish: () => out.finish(),
    reset: reason => stream.reset(reason),
    get wireBytes() {
      return out.wireBytes
    },
  }
}
