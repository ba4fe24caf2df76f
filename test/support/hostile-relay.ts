// A relay that lies: stands in the gateway of a lab, between its own logic and its connections, and does to relayed
// frames, to where streams go and to what sites are told whatever an attack says. Enters: an engine to listen with.
// Leaves: the same engine.
// Always holds: without an attack it is honest; it knows no key: it sees sealed frames as a real relay would, and the
// gateway's own words in clear.
import { decodeCertificate } from '../../crypto/certificate.ts'
import type { Connection, Engine, Stream } from '../../transport/types.ts'
import type { Join } from '../../wire/control.ts'
import { encodeFrame, type Frame, FrameDecoder } from '../../wire/frame.ts'
import { FRAME } from '../../wire/types.ts'
import { wrapEngine } from './wrap-engine.ts'

/** What becomes of a frame: these bytes instead (none: dropped), or null: the stream is ended here, politely. */
type Fate = Uint8Array[] | null

export type Attack = {
  /** A frame (with header) towards the target; `n` counts frames of this stream and direction from 0. */
  forward?(frame: Uint8Array, at: { join: Join; n: number; type: number }): Fate
  /** Whether the end of a stream towards the target is passed on. */
  end?(join: Join): boolean
  /** A frame towards the source. */
  backward?(frame: Uint8Array, at: { join: Join; n: number; type: number }): Fate
  /** What a site is told by the gateway (requests, and answers to its own). */
  rpc?(site: string, message: Message): Message[]
  /** To which site a stream goes. */
  route?(join: Join, site: string): string
  /** The JOIN that the target gets. */
  join?(join: Join): Join
}
// biome-ignore lint/suspicious/noExplicitAny: whatever the gateway says
export type Message = { id?: number; method?: string; params?: any; result?: unknown; error?: unknown }

export type HostileRelay = {
  wrap(engine: Engine): Engine
  /** From now on; undefined: honest again. */
  attack: Attack | undefined
  /** A request in the gateway's name. The site's answer reaches nobody. */
  say(site: string, method: string, params: unknown): Promise<void>
  /** A relay stream that the gateway never asked for. */
  openTo(site: string, first: Uint8Array): Promise<Stream>
}

const FORGED_ID = 1_000_000_000
const anything = () => 16 * 1024 * 1024

type Site = { control?: Stream; connections: Connection[] }

type Gate = { attack: Attack | undefined; siteOf(name: string): Site; connectionTo(name: string): Connection }

export function createHostileRelay(): HostileRelay {
  const sites = new Map<string, Site>()
  let forged = FORGED_ID
  const gate: Gate = {
    attack: undefined,
    siteOf(name) {
      const site = sites.get(name) ?? { connections: [] }
      sites.set(name, site)
      return site
    },
    connectionTo(name) {
      const last = gate.siteOf(name).connections.at(-1)
      if (!last) throw new Error(`no connection of site ${name}`)
      return last
    },
  }
  return {
    get attack() {
      return gate.attack
    },
    set attack(attack) {
      gate.attack = attack
    },
    wrap: engine => wrapEngine(engine, connection => wrapConnection(gate, connection)),
    async say(site, method, params) {
      const { control } = gate.siteOf(site)
      if (!control) throw new Error(`no control stream of site ${site}`)
      await control.write(encodeFrame(FRAME.RPC, Buffer.from(JSON.stringify({ id: forged++, method, params }))))
    },
    async openTo(site, first) {
      const stream = await gate.connectionTo(site).openStream()
      await stream.write(first)
      return stream
    },
  }
}

/** The stream that a site opened first: HELLO tells whose it is; then what the gateway says passes `rpc`. */
function controlStream(gate: Gate, stream: Stream, connection: Connection, known: (site: string) => void): Stream {
  let site: string | undefined
  const incoming = new FrameDecoder(anything)
  const outgoing = new FrameDecoder(anything)
  return {
    ...bare(stream),
    async read() {
      for (;;) {
        const chunk = await stream.read()
        if (chunk === null) return null
        const frames = incoming.push(chunk).filter(frame => !isForgedAnswer(frame))
        const [first] = frames
        if (site === undefined && first?.type === FRAME.HELLO) {
          const hello = JSON.parse(text(first.payload)) as { certificate: string; purpose: string }
          site = decodeCertificate(new Uint8Array(Buffer.from(hello.certificate, 'base64'))).id
          gate.siteOf(site).connections.push(connection)
          if (hello.purpose === 'control') gate.siteOf(site).control = stream
          known(site)
        }
        if (frames.length > 0) return Buffer.concat(frames.map(({ type, payload }) => encodeFrame(type, payload)))
      }
    },
    async write(bytes) {
      for (const { type, payload } of outgoing.push(bytes)) {
        const rpc = type === FRAME.RPC && site !== undefined ? gate.attack?.rpc : undefined
        const messages = rpc?.(site!, JSON.parse(text(payload)))
        if (!messages) await stream.write(encodeFrame(type, payload))
        else for (const message of messages) await stream.write(encodeFrame(FRAME.RPC, Buffer.from(JSON.stringify(message))))
      }
    },
  }
}

/** A stream that the gateway opens towards a site: where it really goes is known with its JOIN. */
function relayStream(gate: Gate, connection: Connection, site: () => string | undefined): Stream {
  const opened = Promise.withResolvers<Stream>()
  const there = new FrameDecoder(anything)
  const back = new FrameDecoder(anything)
  const counts = { there: 0, back: 0 }
  const waiting: (Uint8Array | null)[] = []
  let join: Join | undefined
  let isFirst = true
  let isOver = false
  opened.promise.catch(() => {})

  const first = async (bytes: Uint8Array) => {
    isFirst = false
    const isJoin = bytes[4] === FRAME.JOIN
    if (isJoin) join = JSON.parse(text(bytes.subarray(5))) as Join
    const name = site()
    const to = join && name !== undefined ? (gate.attack?.route?.(join, name) ?? name) : undefined
    const stream = await (to === undefined || to === name ? connection : gate.connectionTo(to)).openStream()
    const told = join && gate.attack?.join ? encodeFrame(FRAME.JOIN, Buffer.from(JSON.stringify(gate.attack.join(join)))) : bytes
    await stream.write(told)
    opened.resolve(stream)
  }
  return {
    id: 0,
    async write(bytes) {
      if (isFirst) return await first(bytes)
      const stream = await opened.promise
      if (!join) return await stream.write(bytes)
      for (const { type, payload } of there.push(bytes)) {
        const frame = encodeFrame(type, payload)
        const fate = gate.attack?.forward ? gate.attack.forward(frame, { join, n: counts.there++, type }) : [frame]
        if (isOver) continue
        if (fate === null) {
          isOver = true
          await stream.end()
        } else for (const out of fate) await stream.write(out)
      }
    },
    async end() {
      const isPassed = join === undefined || gate.attack?.end?.(join) !== false
      if (!isOver && isPassed) await (await opened.promise).end()
    },
    async read() {
      const stream = await opened.promise
      if (!join) return await stream.read()
      while (waiting.length === 0) {
        const chunk = await stream.read()
        if (chunk === null) return null
        for (const { type, payload } of back.push(chunk)) {
          const frame = encodeFrame(type, payload)
          const fate = gate.attack?.backward ? gate.attack.backward(frame, { join, n: counts.back++, type }) : [frame]
          waiting.push(...(fate ?? [null]))
        }
      }
      const next = waiting[0] ?? null
      if (next !== null) waiting.shift()
      return next
    },
    reset(reason) {
      opened.promise.then(stream => stream.reset(reason)).catch(() => {})
      opened.reject(new Error(reason ?? 'reset'))
    },
  }
}

function wrapConnection(gate: Gate, connection: Connection): Connection {
  let site: string | undefined
  let isFirst = true
  return {
    engine: connection.engine,
    remoteAddress: connection.remoteAddress,
    binding: connection.binding,
    closed: connection.closed,
    stats: () => connection.stats(),
    trust: () => connection.trust?.(),
    close: reason => connection.close(reason),
    openStream: async () => relayStream(gate, connection, () => site),
    async acceptStream() {
      const stream = await connection.acceptStream()
      if (stream === null || !isFirst) return stream
      isFirst = false
      return controlStream(gate, stream, connection, name => {
        site = name
      })
    },
  }
}
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('utf8')

/** The gateway would wonder at an answer to a request that it never made. */
const isForgedAnswer = ({ type, payload }: Frame): boolean =>
  type === FRAME.RPC && !text(payload).includes('"method"') && (JSON.parse(text(payload)) as Message).id! >= FORGED_ID

const bare = (stream: Stream): Stream => ({
  id: stream.id,
  write: bytes => stream.write(bytes),
  end: () => stream.end(),
  read: () => stream.read(),
  reset: reason => stream.reset(reason),
})
