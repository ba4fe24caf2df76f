import { duplexPair } from 'node:stream'
import { yamux } from '@chainsafe/libp2p-yamux'
import { createByteQueue } from '../../transport/byte-queue.ts'
import { createMux, type Mux } from '../../transport/mux.ts'
import { createMuxDecoder, encodeMuxFrame, FLAG, type Header, INITIAL_WINDOW_BYTES, TYPE } from '../../transport/mux-frame.ts'
import type { Stream } from '../../transport/types.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('muxer', { ms: 10_000 })
const MiB = 1024 * 1024
const tick = () => new Promise<void>(resolve => setImmediate(resolve))

/** A muxer whose lane writes into `out` and is full while `out` holds more than `roomBytes`. */
function soloMux(
  options: { side?: 'client' | 'server'; roomBytes?: number; connectionWindowBytes?: number; maxStreams?: number; now?: () => number } = {},
) {
  const out: Uint8Array[] = []
  const roomBytes = options.roomBytes ?? Number.POSITIVE_INFINITY
  let queued = 0
  const send = (bytes: Uint8Array) => {
    out.push(bytes)
    queued += bytes.length
    return queued < roomBytes
  }
  const mux = createMux({
    side: options.side ?? 'client',
    lane: { send, queuedBytes: () => queued },
    streamWindowBytes: MiB,
    connectionWindowBytes: options.connectionWindowBytes ?? 8 * MiB,
    maxStreams: options.maxStreams ?? 16,
    ...(options.now ? { now: options.now } : {}),
  })
  return { mux, out }
}

/** Two muxers joined by lanes that deliver in pieces of `pieceBytes`. */
function joined(pieceBytes = 1000, maxStreams = 300): { client: Mux; server: Mux } {
  const muxes: { client?: Mux; server?: Mux } = {}
  const make = (side: 'client' | 'server', peer: () => Mux | undefined) => {
    let queued = 0
    const mux: Mux = createMux({
      side,
      streamWindowBytes: MiB,
      connectionWindowBytes: 64 * MiB,
      maxStreams,
      lane: {
        send(bytes) {
          queued += bytes.length
          setImmediate(() => {
            for (let at = 0; at < bytes.length; at += pieceBytes) peer()?.push(bytes.subarray(at, at + pieceBytes))
            const wasFull = queued > 128 * 1024
            queued -= bytes.length
            if (wasFull && queued <= 128 * 1024) mux.drained()
          })
          return queued <= 128 * 1024
        },
        queuedBytes: () => queued,
      },
    })
    muxes[side] = mux
    return mux
  }
  return { client: make('client', () => muxes.server), server: make('server', () => muxes.client) }
}

async function readAll(stream: Stream): Promise<Buffer> {
  const chunks: Uint8Array[] = []
  for (let chunk = await stream.read(); chunk; chunk = await stream.read()) chunks.push(chunk)
  return Buffer.concat(chunks)
}

function framesIn(chunks: Uint8Array[]): Header[] {
  const headers: Header[] = []
  const decoder = createMuxDecoder({ header: header => headers.push(header), data: () => {} })
  for (const chunk of chunks) decoder.push(chunk)
  return headers
}

test('frames decode the same at every split', () => {
  const bytes = Buffer.concat([
    encodeMuxFrame(TYPE.data, FLAG.syn, 1, 5, Buffer.from('hello')),
    encodeMuxFrame(TYPE.window, FLAG.ack, 0xfffffffe, 0xffffffff),
    encodeMuxFrame(TYPE.data, 0, 3, 0, new Uint8Array()),
    encodeMuxFrame(TYPE.goAway, 0, 0, 2),
  ])
  const decode = (pieces: Buffer[]) => {
    const seen: string[] = []
    let data = ''
    const decoder = createMuxDecoder({
      header: header => seen.push(JSON.stringify(header)),
      data: piece => {
        data += Buffer.from(piece).toString()
      },
    })
    for (const piece of pieces) decoder.push(piece)
    return [...seen, data].join(' ')
  }
  const whole = decode([bytes])
  assert.match(whole, /"id":4294967294,"length":4294967295/)
  for (let at = 0; at <= bytes.length; at++) assert.is(decode([bytes.subarray(0, at), bytes.subarray(at)]), whole, `split at ${at}`)
  assert.is(decode([...bytes].map(byte => Buffer.of(byte))), whole)
})

test('every truncation of a frame is waited for, not misread', () => {
  const bytes = encodeMuxFrame(TYPE.data, 0, 1, 4, Buffer.from('data'))
  for (let length = 0; length < 12; length++) assert.is(framesIn([bytes.subarray(0, length)]).length, 0)
})

test('a wrong version or type ends the muxer', async () => {
  for (const at of [0, 1]) {
    const { mux } = soloMux()
    const bytes = encodeMuxFrame(TYPE.ping, FLAG.syn, 0, 1)
    bytes[at] = 9
    mux.push(bytes)
    const reason = await mux.closed
    assert.is(reason.code, 'CONNECTION_LOST')
    assert.match(reason.message, /violated the protocol/)
  }
})

test('what a peer may not do ends the muxer', async () => {
  const open = encodeMuxFrame(TYPE.window, FLAG.syn, 2, 0)
  const cases: Record<string, Uint8Array[]> = {
    'data beyond the window': [open, encodeMuxFrame(TYPE.data, 0, 2, INITIAL_WINDOW_BYTES + 1)],
    'four gigabytes announced': [open, encodeMuxFrame(TYPE.data, 0, 2, 0xffff_ffff)],
    'data after the end': [open, encodeMuxFrame(TYPE.window, FLAG.fin, 2, 0), encodeMuxFrame(TYPE.data, 0, 2, 1, Buffer.of(1))],
    'a stream of our numbers': [encodeMuxFrame(TYPE.window, FLAG.syn, 1, 0)],
    'a stream opened twice': [open, open],
    'data without a stream': [encodeMuxFrame(TYPE.data, 0, 0, 1, Buffer.of(1))],
    'a ping on a stream': [open, encodeMuxFrame(TYPE.ping, FLAG.syn, 2, 1)],
  }
  for (const [what, frames] of Object.entries(cases)) {
    const { mux } = soloMux()
    for (const frame of frames) mux.push(frame)
    assert.is(await Promise.race([mux.closed.then(reason => reason.code), tick().then(() => 'open')]), 'CONNECTION_LOST', what)
  }
})

test('frames of unknown streams are passed over, data and all', async () => {
  const { mux } = soloMux()
  mux.push(encodeMuxFrame(TYPE.data, 0, 6, 3, Buffer.from('old')))
  mux.push(encodeMuxFrame(TYPE.data, FLAG.syn, 2, 3, Buffer.from('new')))
  const stream = await mux.acceptStream()
  assert.is(Buffer.from((await stream!.read())!).toString(), 'new')
})

test('streams beyond the limit are refused with a reset, and the others go on', async () => {
  const { mux, out } = soloMux({ maxStreams: 2 })
  for (const id of [2, 4, 6]) mux.push(encodeMuxFrame(TYPE.window, FLAG.syn, id, 0))
  assert.equal(
    framesIn(out).map(({ flags, id }) => [flags, id]),
    [[FLAG.rst, 6]],
  )
  assert.is((await mux.acceptStream())?.id, 2)
})

test('a peer that asks but does not read is dropped', async () => {
  const { mux } = soloMux()
  const ping = encodeMuxFrame(TYPE.ping, FLAG.syn, 0, 1)
  const many = Buffer.concat(Array(10_000).fill(ping))
  for (let i = 0; i < 100; i++) mux.push(many)
  assert.match((await mux.closed).message, /does not read/)
})

test('a stream that nobody reads is never given more than the first window; the connection window bounds the growth of the others', async () => {
  const { mux, out } = soloMux({ connectionWindowBytes: MiB })
  for (const id of [2, 4, 6]) mux.push(encodeMuxFrame(TYPE.window, FLAG.syn, id, 0))
  const streams = [await mux.acceptStream(), await mux.acceptStream(), await mux.acceptStream()]
  assert.is(framesIn(out).length, 0)
  for (const stream of streams.slice(0, 2)) stream!.read().catch(() => {})
  await tick()
  // One window of 1 MiB fits (768 KiB beyond the first 256), a second does not.
  assert.equal(
    framesIn(out).map(({ id, length, flags }) => [id, length, flags]),
    [[2, MiB - INITIAL_WINDOW_BYTES, FLAG.ack]],
  )
})

test('writers take turns on a full lane', async () => {
  const { mux, out } = soloMux({ roomBytes: 1 })
  const block = new Uint8Array(256 * 1024)
  const streams = [mux.openStream(), mux.openStream(), mux.openStream()]
  for (const stream of streams) stream.write(block).catch(() => {})
  for (let i = 0; i < 8; i++) {
    await tick()
    mux.drained()
  }
  const order = framesIn(out).map(({ id }) => id)
  // The first finds the lane free; from then on they rotate.
  assert.equal(order, [1, 1, 3, 5, 1, 3, 5, 1].slice(0, order.length))
  assert.ok(order.length >= 7)
})

test('rtt is the time between ping and answer', async () => {
  let now = 100
  const { mux, out } = soloMux({ now: () => now })
  mux.ping()
  const [ping] = framesIn(out)
  now = 142
  mux.push(encodeMuxFrame(TYPE.ping, FLAG.ack, 0, ping!.length))
  assert.is(mux.rttMs, 42)
  assert.is(mux.heardAt, 142)
})

test('two muxers carry many streams both ways whatever the pieces', async () => {
  for (const pieceBytes of [7, 1000, 100_000]) {
    const { client, server } = joined(pieceBytes)
    const echo = async (mux: Mux) => {
      for (let stream = await mux.acceptStream(); stream; stream = await mux.acceptStream()) {
        const mine = stream
        readAll(mine).then(async bytes => {
          await mine.write(bytes)
          await mine.end()
        })
      }
    }
    void echo(server)
    void echo(client)
    const one = async (mux: Mux, i: number) => {
      const stream = mux.openStream()
      const bytes = Buffer.alloc(pieceBytes < 100 ? 500 : 30_000 + i * 997, i)
      await stream.write(bytes)
      await stream.end()
      assert.ok((await readAll(stream)).equals(bytes))
    }
    await Promise.all(Array.from({ length: 60 }, (_, i) => one(i % 2 ? client : server, i)))
  }
})

test('what has come before a loss can still be read; then the loss is told', async () => {
  const { mux } = soloMux()
  mux.push(encodeMuxFrame(TYPE.data, FLAG.syn, 2, 4, Buffer.from('half')))
  mux.push(encodeMuxFrame(TYPE.data, FLAG.syn | FLAG.fin, 4, 5, Buffer.from('whole')))
  const [half, whole] = [await mux.acceptStream(), await mux.acceptStream()]
  mux.finish({ code: 'CONNECTION_LOST', message: 'gone' })
  assert.is(Buffer.from((await half!.read())!).toString(), 'half')
  assert.is(await codeOf(() => half!.read()), 'CONNECTION_LOST')
  assert.is((await readAll(whole!)).toString(), 'whole')
  assert.is(await codeOf(() => whole!.write(Uint8Array.of(1))), 'CONNECTION_LOST')
})

test('an end that comes with data is behind the data, however the frame is cut', async () => {
  const { mux } = soloMux()
  const frame = encodeMuxFrame(TYPE.data, FLAG.syn | FLAG.fin, 2, 6, Buffer.from('abcdef'))
  mux.push(frame.subarray(0, 12))
  const stream = (await mux.acceptStream())!
  const all = readAll(stream)
  for (const cut of [14, 17, 18]) {
    await tick()
    mux.push(frame.subarray(cut === 14 ? 12 : cut === 17 ? 14 : 17, cut))
  }
  assert.is((await all).toString(), 'abcdef')
})

test('a stream that ended at both ends but is not read out keeps its place and its share of the window', async () => {
  const { mux, out } = soloMux({ connectionWindowBytes: MiB, maxStreams: 1 })
  mux.push(encodeMuxFrame(TYPE.window, FLAG.syn, 2, 0))
  const first = (await mux.acceptStream())!
  const reading = first.read()
  await tick()
  await first.end()
  mux.push(encodeMuxFrame(TYPE.data, 0, 2, 4, Buffer.from('read')))
  assert.is(String(await reading), 'read')
  mux.push(encodeMuxFrame(TYPE.data, FLAG.fin, 2, 4, Buffer.from('left')))
  mux.push(encodeMuxFrame(TYPE.window, FLAG.syn, 4, 0))
  assert.is(framesIn(out).at(-1)?.flags, FLAG.rst)
  // A reset that was on its way when both ends were said takes nothing away.
  mux.push(encodeMuxFrame(TYPE.window, FLAG.rst, 2, 0))
  assert.is((await readAll(first)).toString(), 'left')
  mux.push(encodeMuxFrame(TYPE.window, FLAG.syn, 6, 0))
  assert.is((await mux.acceptStream())?.id, 6)
})

test('the byte queue keeps order and copies small pieces together', () => {
  const queue = createByteQueue()
  const expected: number[] = []
  const got: number[] = []
  for (let i = 0; i < 3000; i++) {
    const piece = Uint8Array.from({ length: [1, 1, 2, 3000, 17, 2047, 2048][i % 7]! }, (_, k) => (i + k) & 255)
    queue.push(piece)
    expected.push(...piece)
    piece.fill(i % 7 === 3 || i % 7 === 6 ? (piece[0] ?? 0) : 0, 0, 1)
    if (i % 3 === 0) got.push(...(queue.shift() ?? []))
  }
  for (let piece = queue.shift(); piece; piece = queue.shift()) got.push(...piece)
  assert.is(queue.length, 0)
  assert.is(Buffer.compare(Buffer.from(got), Buffer.from(expected)), 0)
  for (let i = 0; i < 10_000; i++) queue.push(Uint8Array.of(1))
  assert.is(queue.shift()?.length, 10_000)
})

test('the format is yamux: @chainsafe/libp2p-yamux understands us and we it', async () => {
  const [ours, theirs] = duplexPair()
  const mux = createMux({
    side: 'client',
    lane: { send: bytes => ours.write(bytes), queuedBytes: () => ours.writableLength },
    streamWindowBytes: MiB,
    connectionWindowBytes: 8 * MiB,
    maxStreams: 16,
  })
  ours.on('data', (chunk: Buffer) => mux.push(chunk))
  ours.on('drain', () => mux.drained())
  const { events, connection } = libp2pConnection(theirs)
  const peer = yamux({ enableKeepAlive: false })().createStreamMuxer(connection as never)
  peer.addEventListener('stream', (event: { detail: unknown }) => {
    const stream = event.detail as EventTarget & { send(data: unknown): boolean; onDrain(): Promise<void>; close(): Promise<void> }
    let sending: Promise<unknown> = Promise.resolve()
    stream.addEventListener('message', message => {
      const { data } = message as unknown as { data: { subarray(): Uint8Array } }
      const bytes = Uint8Array.from(data.subarray())
      sending = sending.then(async () => stream.send(bytes) || (await stream.onDrain()))
    })
    stream.addEventListener('remoteCloseWrite', () => sending.then(() => stream.close()))
  })
  theirs.on('data', (chunk: Buffer) => events.message(chunk))
  theirs.on('drain', () => events.drain())
  mux.ping()
  const stream = mux.openStream()
  const bytes = Buffer.from(Array.from({ length: 900_000 }, (_, i) => i & 255))
  const answer = readAll(stream)
  await stream.write(bytes)
  await stream.end()
  assert.ok((await answer).equals(bytes))
  assert.type(mux.rttMs, 'number')
  await peer.close()
  assert.is((await mux.closed).code, 'CLOSED')
})

/** As much of a libp2p connection as the other muxer asks for. */
function libp2pConnection(pipe: { write(bytes: Uint8Array): boolean }) {
  const quiet = () => {}
  const log: object = Object.assign(() => {}, { enabled: false, trace: quiet, error: quiet, newScope: () => log })
  const target = new EventTarget()
  const connection = Object.assign(target, {
    direction: 'inbound',
    log,
    abort: () => {},
    send: (list: Iterable<Uint8Array> | Uint8Array) => {
      let room = true
      for (const bytes of list instanceof Uint8Array ? [list] : list) room = pipe.write(Buffer.from(bytes))
      return room
    },
  })
  return {
    connection,
    events: {
      message: (data: Uint8Array) => void target.dispatchEvent(Object.assign(new Event('message'), { data })),
      drain: () => void target.dispatchEvent(new Event('drain')),
    },
  }
}

test.run()
