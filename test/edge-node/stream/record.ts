// Takes the migration stream of a tiny guest: plays a target that loads everything.
// Enters: a guest and how it migrates. Leaves: the bytes of its first connection. The guest stays (postmigrate), so its
// memory can be read.
import { createServer, type Server, type Socket } from 'node:net'
import { join } from 'node:path'
import { encodePong, encodeShut } from '../../../edge-node/stream/return-path.ts'
import { eventually, sleep } from '../../../ops/deadline.ts'
import { setCapabilities, type TinyGuest } from './tiny-guest.ts'

export type RecordOptions = {
  capabilities: string[]
  /** 'run': the guest runs before and during the migration; without it stays paused. */
  guest?: 'run'
  /** Switch to post-copy after a while. */
  postcopy?: true
}

const LIMIT_MS = 30_000
const POLL_MS = 100
/** Slow enough that the running guest makes some iterations, then no limit. */
const SLOW_BYTES_PER_SECOND = 700_000
const SLOW_MS = 900

type Sink = { server: Server; bytes: () => Buffer; answer: (reply: Uint8Array) => void }

async function receive(path: string): Promise<Sink> {
  const chunks: Buffer[] = []
  let first: Socket | undefined
  const server = createServer(socket => {
    socket.on('error', () => {})
    if (first !== undefined) return socket.resume()
    first = socket
    return socket.on('data', (chunk: Buffer) => chunks.push(chunk))
  })
  await new Promise<void>(resolve => server.listen(path, resolve))
  return { server, bytes: () => Buffer.concat(chunks), answer: reply => first?.write(reply) }
}

export async function recordFrom(guest: TinyGuest, options: RecordOptions): Promise<Buffer> {
  const { qmp } = guest
  const slow = options.guest === 'run'
  if (options.capabilities.length > 0) await setCapabilities(qmp, options.capabilities)
  if (slow) {
    await qmp.execute('cont')
    await sleep(200)
  }
  await qmp.execute('migrate-set-parameters', { 'max-bandwidth': slow ? SLOW_BYTES_PER_SECOND : 0, 'downtime-limit': 1 })
  const sink = await receive(join(guest.folder, 'out.sock'))
  try {
    await qmp.execute('migrate', { uri: 'unix:out.sock' })
    if (slow) await sleep(SLOW_MS)
    for (const value of [1, 2, 3, 4]) if (options.postcopy) sink.answer(encodePong(value))
    if (options.postcopy) await qmp.execute('migrate-start-postcopy')
    await qmp.execute('migrate-set-parameters', { 'max-bandwidth': 0, 'downtime-limit': 2000 })
    await finish(guest, sink, options.capabilities.includes('return-path'))
    return sink.bytes()
  } finally {
    sink.server.close()
  }
}

/**
 * Waits until the migration has completed and no more bytes come; where there is a return path, SHUT(0) goes when it is
 * quiet.
 */
async function finish({ qmp }: TinyGuest, sink: Sink, shut: boolean): Promise<void> {
  let before = -1
  await eventually(
    async () => {
      const length = sink.bytes().length
      const quiet = length === before
      before = length
      const info = await qmp.execute('query-migrate')
      if (info.status === 'failed') throw new Error(`the migration failed: ${JSON.stringify(info)}`)
      if (info.status === 'completed') return quiet ? true : undefined
      // finish-migrate is over only when the target answers.
      if (quiet && shut) sink.answer(encodeShut(0))
      return undefined
    },
    { ms: LIMIT_MS, what: 'recording a stream', everyMs: POLL_MS },
  )
}
