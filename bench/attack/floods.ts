// Attacks of a hostile network and a hostile site on a gateway, for the benchmark and for tests. Enters: the gateway's
// address. Leaves: a flood that runs until it is stopped, and counts. Always holds: loopback only; a flood has at most
// `width` open connections or streams.
import { randomBytes } from 'node:crypto'
import { connect as connectTcp } from 'node:net'
import { sleep } from '../../ops/deadline.ts'
import { createTlsEngine } from '../../transport/tls.ts'
import type { Connection, Engine } from '../../transport/types.ts'
import { encodeFrame, FRAME_HEADER_BYTES, writeFrameHeader } from '../../wire/frame.ts'
import { toJson } from '../../wire/schema.ts'
import { FRAME } from '../../wire/types.ts'
import { VERSIONS } from '../../wire/versions.ts'

/** The attacks of bench/attack.ts, each alone, and all together. */
export const ATTACKS = ['none', 'silent', 'hellos', 'frames', 'streams', 'drips', 'all'] as const
export type AttackName = (typeof ATTACKS)[number]

export type Door = { engine: Engine; port: number }
export type Flood = { readonly made: number; stop(): Promise<void> }

const HOST = '127.0.0.1'
const AGAIN_MS = 5

/** Runs `once` repeatedly, `width` times in parallel. */
export function flood(width: number, once: (signal: AbortSignal) => Promise<void>): Flood {
  const over = new AbortController()
  let made = 0
  const place = async () => {
    while (!over.signal.aborted) {
      made += 1
      await once(over.signal).catch(() => {})
      await sleep(AGAIN_MS, over.signal).catch(() => {})
    }
  }
  const places = Array.from({ length: width }, place)
  return {
    get made() {
      return made
    },
    async stop() {
      over.abort(new Error('the flood is over'))
      await Promise.all(places)
    },
  }
}

const ended = (signal: AbortSignal) => new Promise<void>(resolve => signal.addEventListener('abort', () => resolve(), { once: true }))

/** TCP connections that never begin a handshake. */
export const silentSockets = ({ port }: Door, width: number): Flood =>
  flood(width, async signal => {
    const socket = connectTcp({ host: HOST, port })
    socket.on('error', () => {})
    await Promise.race([new Promise<void>(resolve => socket.once('close', () => resolve())), ended(signal)])
    socket.destroy()
  })

async function withConnection(door: Door, signal: AbortSignal, use: (connection: Connection) => Promise<void>): Promise<void> {
  // One lane if the engine has lanes: cheapest for the attacker.
  const engine = door.engine.name === 'tls' ? createTlsEngine({ connections: 1 }) : door.engine
  const connection = await engine.connect({ host: HOST, port: door.port, signal, timeoutMs: 10_000 })
  try {
    await Promise.race([use(connection), connection.closed, ended(signal)])
  } finally {
    await connection.close().catch(() => {})
  }
}

/** Complete connections without any data. */
export const silentConnections = (door: Door, width: number): Flood =>
  flood(width, signal => withConnection(door, signal, () => new Promise(() => {})))

/** HELLOs with an invalid certificate: each costs the gateway a handshake and a check. */
export const falseHellos = (door: Door, width: number): Flood =>
  flood(width, signal =>
    withConnection(door, signal, async connection => {
      const stream = await connection.openStream()
      const certificate = randomBytes(186)
      certificate.set(Buffer.from('GWC1'))
      const hello = { version: VERSIONS.link.max, purpose: 'control', incarnation: 1, nonce: randomBytes(32).toString('base64') }
      await stream.write(encodeFrame(FRAME.HELLO, toJson({ ...hello, certificate: certificate.toString('base64') })))
      await stream.read()
    }),
  )

/** First frames that announce four gigabytes, and some that announce an allowed size and never end. */
export const hugeFrames = (door: Door, width: number): Flood =>
  flood(width, signal =>
    withConnection(door, signal, async connection => {
      const stream = await connection.openStream()
      const header = new Uint8Array(FRAME_HEADER_BYTES)
      const isAllowed = Math.random() < 0.5
      writeFrameHeader(header, 0, FRAME.HELLO, isAllowed ? 65_536 : 0xffff_ffff)
      await stream.write(header)
      if (isAllowed) await stream.write(randomBytes(65_000))
      await stream.read()
    }),
  )

/** Streams on a site's connection, opened as fast as they are rejected. `first`: the first bytes of each. */
export const manyStreams = (connection: Connection, width: number, first: () => Uint8Array): Flood =>
  flood(width, async signal => {
    const stream = await connection.openStream()
    await stream.write(first())
    await Promise.race([stream.read(), ended(signal)])
    stream.reset('again')
  })
