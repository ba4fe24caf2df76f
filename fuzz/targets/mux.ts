// transport/mux.ts, mux-stream.ts, mux-frame.ts: frames of a peer, well formed or not, while this side opens, reads,
// writes, ends and resets streams. Sent bytes stay within the peer's credit; unread bytes stay within the own credit;
// at the end every call has ended.

import { createMux, type Mux } from '../../transport/mux.ts'
import { createMuxDecoder, encodeMuxFrame, FLAG, INITIAL_WINDOW_BYTES, TYPE } from '../../transport/mux-frame.ts'
import type { Stream } from '../../transport/types.ts'
import { GodwitError } from '../../wire/errors.ts'
import { KIB } from '../../wire/units.ts'
import { Choices, demand, type Target } from '../target.ts'

const STREAMS_MAX = 4
const STREAM_WINDOW_BYTES = 512 * KIB
const CONNECTION_WINDOW_BYTES = 512 * KIB
/** Streams of both sides, each with its initial window, and the common budget of growth. */
const UNREAD_BYTES_MAX = 2 * STREAMS_MAX * INITIAL_WINDOW_BYTES + CONNECTION_WINDOW_BYTES
/** Data bytes of one execution. */
const DATA_BYTES_MAX = 4 * 1024 * KIB
const zeros = new Uint8Array(1024 * KIB)

const OP = { raw: 0, frame: 1, accept: 2, read: 3, write: 4, end: 5, reset: 6, drained: 7, open: 8, ping: 9, wait: 10 } as const

type Own = { stream: Stream; ended: boolean; reading: boolean; bytes: number; whole: boolean }

const turn = () => new Promise<void>(resolve => setImmediate(resolve))

class Play {
  readonly own: Own[] = []
  readonly running = new Set<Promise<unknown>>()
  readonly failures: unknown[] = []
  readonly mux: Mux
  readonly #credit = new Map<number, number>()
  /**
   * Data that the peer has sent by stream; without streams whose number was used twice, or that raw bytes may have
   * changed.
   */
  readonly #sent = new Map<number, number>()
  readonly #ended = new Set<number>()
  #unclear = false
  #queued = 0
  #dataLeft = DATA_BYTES_MAX
  readonly #sentDecoder: { push(chunk: Uint8Array): void }

  constructor() {
    this.#sentDecoder = createMuxDecoder({
      header: ({ type, id, length }) => {
        if (type !== TYPE.data) return
        const left = (this.#credit.get(id) ?? INITIAL_WINDOW_BYTES) - length
        demand(left >= 0, `${-left} bytes beyond the peer's window`)
        this.#credit.set(id, left)
      },
      data: () => {},
    })
    this.mux = createMux({
      side: 'client',
      lane: {
        send: bytes => {
          this.#sentDecoder.push(bytes)
          this.#queued += bytes.length
          return this.#queued < 100 * KIB
        },
        queuedBytes: () => this.#queued,
      },
      streamWindowBytes: STREAM_WINDOW_BYTES,
      connectionWindowBytes: CONNECTION_WINDOW_BYTES,
      maxStreams: STREAMS_MAX,
      now: () => 0,
    })
  }

  call(work: () => Promise<unknown>): void {
    const running = work().catch(error => this.failures.push(error))
    this.running.add(running)
    void running.then(() => this.running.delete(running))
  }

  step(choices: Choices): Promise<void> | undefined {
    const op = choices.number(1) % 11
    if (op === OP.raw) {
      this.#unclear = true
      this.mux.push(choices.take(choices.number(1)))
    } else if (op === OP.frame) return this.#frame(choices)
    else if (op === OP.accept) this.call(async () => this.#add(await this.mux.acceptStream()))
    else if (op === OP.drained) {
      this.#queued = 0
      this.mux.drained()
    } else if (op === OP.open) this.call(async () => this.#add(this.mux.openStream()))
    else if (op === OP.ping) this.mux.ping()
    else if (op === OP.wait) return turn()
    else this.#onStream(op, choices)
    return undefined
  }

  #add(stream: Stream | null): void {
    if (stream) this.own.push({ stream, ended: false, reading: false, bytes: 0, whole: false })
  }

  #frame(choices: Choices): Promise<void> | undefined {
    const [type, flags, id, length] = [choices.number(1) & 3, choices.number(1) & 15, choices.number(1) & 15, choices.number(3)]
    if (type === TYPE.window && id !== 0) this.#credit.set(id, (this.#credit.get(id) ?? INITIAL_WINDOW_BYTES) + length)
    const dataBytes = type === TYPE.data ? Math.min(length, this.#dataLeft, zeros.length) : 0
    this.#dataLeft -= dataBytes
    this.#account(type, flags, id, dataBytes)
    const header = encodeMuxFrame(type, flags, id, type === TYPE.data ? dataBytes : length)
    const cut = choices.number(1)
    this.mux.push(header)
    this.mux.push(zeros.subarray(0, Math.min(cut, dataBytes)))
    if (cut >= dataBytes) return undefined
    const rest = () => this.mux.push(zeros.subarray(0, dataBytes - cut))
    // Other tasks run between the pieces.
    if (cut % 2 === 1) return turn().then(rest)
    rest()
    return undefined
  }

  /** The data that a reader of this stream must receive: between its start and its end. */
  #account(type: number, flags: number, id: number, dataBytes: number): void {
    if (flags & FLAG.syn) {
      if (this.#sent.has(id)) this.#unclear = true
      this.#sent.set(id, 0)
    }
    const sent = this.#sent.get(id) ?? (this.own.some(({ stream }) => stream.id === id) ? 0 : undefined)
    if (sent === undefined || this.#ended.has(id)) return
    if (type === TYPE.data) this.#sent.set(id, sent + dataBytes)
    if (flags & FLAG.fin) this.#ended.add(id)
  }

  #onStream(op: number, choices: Choices): void {
    const own = this.own[choices.number(1) % Math.max(1, this.own.length)]
    if (!own) return
    if (op === OP.read) this.read(own)
    else if (op === OP.write && !own.ended) this.call(() => own.stream.write(zeros.subarray(0, choices.number(3) % (600 * KIB))))
    else if (op === OP.end) {
      own.ended = true
      this.call(() => own.stream.end())
    } else if (op === OP.reset) own.stream.reset('fuzz')
  }

  read(own: Own): void {
    if (own.reading) return
    own.reading = true
    this.call(async () => {
      const bytes = await own.stream.read().finally(() => {
        own.reading = false
      })
      demand(bytes === null || bytes.length > 0, 'nothing is no end')
      this.readBytes += bytes?.length ?? 0
      own.bytes += bytes?.length ?? 0
      own.whole ||= bytes === null
    })
  }

  readBytes = 0

  /** A stream with a clean end delivered all bytes of the peer. */
  demandWhole(): void {
    if (this.#unclear) return
    for (const { stream, bytes, whole } of this.own)
      if (whole)
        demand(bytes === (this.#sent.get(stream.id) ?? 0), `stream ${stream.id} ends after ${bytes} of ${this.#sent.get(stream.id)} bytes`)
  }

  /** Reads the available bytes; returns their number. */
  async drain(): Promise<number> {
    for (let i = 0; i < 2 * STREAMS_MAX; i++) this.call(async () => this.#add(await this.mux.acceptStream()))
    await turn()
    const before = this.readBytes
    for (let last = -1; last !== this.readBytes; ) {
      last = this.readBytes
      for (const own of this.own) this.read(own)
      await turn()
    }
    return this.readBytes - before
  }
}

const frame = (type: number, flags: number, id: number, length: number, cut = 255) => [
  OP.frame,
  type,
  flags,
  id,
  length >> 16,
  (length >> 8) & 255,
  length & 255,
  cut,
]

export const mux: Target = {
  name: 'mux',
  what: 'transport/mux.ts, mux-stream.ts, mux-frame.ts: frames of a peer against streams in use',
  codes: ['CONNECTION_LOST'],
  testRuns: 3000,
  bytesMax: 1024,
  memoryBytes: 16 * 1024 * KIB,
  words: [
    Uint8Array.from(frame(TYPE.window, FLAG.fin, 2, 0)),
    Uint8Array.from(frame(TYPE.data, FLAG.fin, 2, 300)),
    Uint8Array.from(frame(TYPE.window, FLAG.syn, 4, 0)),
    Uint8Array.from(frame(TYPE.window, FLAG.rst, 2, 0)),
    Uint8Array.of(OP.wait),
    Uint8Array.of(OP.accept, OP.wait, OP.read, 0),
  ],
  seeds: () => [
    Uint8Array.from([
      ...frame(TYPE.window, FLAG.syn, 2, 0),
      OP.accept,
      OP.wait,
      OP.read,
      0,
      OP.wait,
      ...frame(TYPE.data, 0, 2, 5000),
      OP.read,
      0,
      OP.wait,
      OP.end,
      0,
      OP.wait,
      ...frame(TYPE.data, FLAG.fin, 2, 400_000),
    ]),
    Uint8Array.from([
      OP.open,
      OP.wait,
      OP.write,
      0,
      4,
      0,
      0,
      OP.wait,
      ...frame(TYPE.window, FLAG.ack, 1, 100_000),
      OP.drained,
      OP.wait,
      OP.end,
      0,
      OP.reset,
      0,
    ]),
    Uint8Array.from([OP.ping, ...frame(TYPE.ping, FLAG.ack, 0, 1), ...frame(TYPE.ping, FLAG.syn, 0, 9), ...frame(TYPE.goAway, 0, 0, 0)]),
    Uint8Array.from([2, 4, 6, 8, 10].flatMap(id => [...frame(TYPE.data, FLAG.syn, id, 256 * KIB, 9), OP.accept])),
    Uint8Array.from([OP.raw, 12, 0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0]),
    // Streams that are read once and ended by this side, then filled and ended by the peer.
    Uint8Array.from(
      [2, 4, 6, 8, 10, 12, 14].flatMap((id, k) => [
        ...frame(TYPE.window, FLAG.syn, id, 0),
        ...[OP.accept, OP.wait, OP.read, k, OP.wait, OP.end, k, OP.wait],
        ...frame(TYPE.data, FLAG.fin, id, 512 * KIB, 9),
      ]),
    ),
  ],
  async run(input) {
    const play = new Play()
    const choices = new Choices(input)
    for (let steps = 0; choices.left > 0 && steps < 200; steps++) {
      const wait = play.step(choices)
      if (wait) await wait
    }
    const unread = await play.drain()
    demand(unread <= UNREAD_BYTES_MAX, `${unread} bytes were unread`)
    const isOver = await Promise.race([play.mux.closed.then(() => true), turn().then(() => false)])
    if (!isOver) play.demandWhole()
    play.mux.finish({ code: 'CONNECTION_LOST', message: 'over' })
    await turn()
    await turn()
    demand(play.running.size === 0, `${play.running.size} calls never end`)
    for (const failure of play.failures) if (!(failure instanceof GodwitError)) throw failure
    const { message } = await play.mux.closed
    if (message.startsWith('the peer violated')) throw new GodwitError('CONNECTION_LOST', message)
  },
}
