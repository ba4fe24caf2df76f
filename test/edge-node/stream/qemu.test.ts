import { closeSync, readFileSync, writeSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { createParser } from '../../../edge-node/stream/parse.ts'
import { tokenize } from '../../../edge-node/stream/tokenize.ts'
import { type Token, write } from '../../../edge-node/stream/write.ts'
import { eventually, within } from '../../../ops/deadline.ts'
import { assert, suite } from '../../support/suite.ts'
import { cut } from './model.ts'
import { recordFrom } from './record.ts'
import { qemuVersion, startTinyGuest, type TinyGuest } from './tiny-guest.ts'

const test = suite('migration streams and a real QEMU', { ms: 90_000 })

const version = qemuVersion()
const old = version !== undefined && Number(version.split('.')[0]) < 9
const skip = version === undefined ? 'qemu-system-x86_64 is not installed' : old ? `QEMU ${version} is below 9.0` : undefined

const MEMORY_BYTES = 2 << 20
const LOAD_MS = 20_000
const ram = ['-object', `memory-backend-memfd,id=ram0,size=${MEMORY_BYTES},share=on`]
const pc = ['-machine', 'pc,memory-backend=ram0', '-m', '2', ...ram, '-device', 'virtio-rng-pci']
const isapc = ['-machine', 'isapc,memory-backend=ram0', '-m', '2', ...ram]

async function memoryOf(guest: TinyGuest): Promise<Buffer> {
  await guest.qmp.execute('pmemsave', { val: 0, size: MEMORY_BYTES, filename: 'memory' })
  return readFileSync(join(guest.folder, 'memory'))
}

/** Gives the bytes to a QEMU that waits for a migration; ends when it has loaded them. */
async function loadInto(target: TinyGuest, bytes: Uint8Array): Promise<void> {
  await target.qmp.execute('migrate-incoming', { uri: 'unix:in.sock' })
  const socket = connect(join(target.folder, 'in.sock'))
  const closed = new Promise<void>((resolve, reject) => socket.on('error', reject).on('close', () => resolve()))
  socket.resume().end(bytes)
  await within(closed, { ms: LOAD_MS, what: 'the target to read the stream' })
  const loaded = async () => {
    const { status } = await target.qmp.execute('query-migrate')
    if (status === 'failed') throw new Error(`the target did not load the stream: ${target.log()}`)
    return status === 'completed' ? true : undefined
  }
  await eventually(loaded, { ms: LOAD_MS, what: 'the target to load' })
}

/**
 * Captured pages of ram0 go into the target's memory by its file, the skeleton goes into QEMU. Gives what the parser
 * fell over, and the counts.
 */
async function loadApart(target: TinyGuest, stream: Uint8Array) {
  const skeleton: Buffer[] = []
  const memory = target.openMemory()
  const counts = { pages: 0, zeros: 0, skeletonBytes: 0 }
  const zeros = new Uint8Array(4096)
  try {
    const parser = createParser(
      {
        skeleton: bytes => skeleton.push(Buffer.from(bytes)),
        page: (_, offset, bytes) => {
          counts.pages++
          writeSync(memory, bytes, 0, bytes.length, offset)
        },
        zero: (_, offset) => {
          counts.zeros++
          writeSync(memory, zeros, 0, zeros.length, offset)
        },
        blocks: () => {},
        ramEnd: () => {},
        opaque: () => {},
      },
      { captures: name => name === 'ram0' },
    )
    for (const piece of cut(stream, 10_000)) parser.push(piece)
    parser.end()
    const bytes = Buffer.concat(skeleton)
    counts.skeletonBytes = bytes.length
    await loadInto(target, bytes)
    return { ...counts, reason: parser.opaqueReason }
  } finally {
    closeSync(memory)
  }
}

/** A recorded stream, the source's memory after it, and a target of the same machine. */
async function migrated(argv: string[], options: { capabilities: string[]; guest?: 'run' }, body: (m: Migrated) => Promise<void>) {
  using source = await startTinyGuest(argv)
  const stream = new Uint8Array(await recordFrom(source, options))
  const memory = await memoryOf(source)
  using target = await startTinyGuest([...argv, '-incoming', 'defer'])
  await body({ stream, memory, target })
}
type Migrated = { stream: Uint8Array; memory: Buffer; target: TinyGuest }

const nonZeroPages = (memory: Buffer) =>
  Array.from({ length: memory.length / 4096 }, (_, page) => memory.subarray(page * 4096, page * 4096 + 4096)).filter(page =>
    page.some(Boolean),
  )

const events = ['events']

test(
  'a target loads the skeleton and has the memory of a guest that ran while its pages were captured',
  () =>
    migrated(pc, { capabilities: events, guest: 'run' }, async ({ stream, memory, target }) => {
      const { pages, zeros, skeletonBytes, reason } = await loadApart(target, stream)
      assert.is(reason, undefined)
      assert.ok(pages > 300 && zeros > 100 && skeletonBytes < stream.length / 4, `${pages} ${zeros} ${skeletonBytes}`)
      assert.ok(nonZeroPages(memory).length > 100)
      assert.is(Buffer.compare(await memoryOf(target), memory), 0)
    }),
  { skip },
)

test(
  'a target loads captured pages that were put back with their block named',
  () =>
    migrated(pc, { capabilities: events, guest: 'run' }, async ({ stream, memory, target }) => {
      const tokens: Token[] = []
      let block: string | undefined
      for (const token of tokenize(stream)) {
        const page = token.kind === 'page' || token.kind === 'zero'
        if (page) block = token.name ?? block
        tokens.push(page && block !== undefined ? { ...token, name: block } : token)
      }
      await loadInto(target, write(tokens))
      assert.is(Buffer.compare(await memoryOf(target), memory), 0)
    }),
  { skip },
)

test(
  'within RAM a record that the parser does not know (XBZRLE) passes, and the target has the right memory',
  () =>
    migrated(isapc, { capabilities: [...events, 'xbzrle'], guest: 'run' }, async ({ stream, memory, target }) => {
      const { pages, reason } = await loadApart(target, stream)
      assert.ok(pages > 100, `${pages} pages were captured before`)
      assert.match(reason ?? '', 'RAM record with flags 0x60')
      assert.is(Buffer.compare(await memoryOf(target), memory), 0)
    }),
  { skip },
)

/**
 * The stream with its first device section once more in the middle of RAM, from where the parser sees nothing any more.
 * The place is before a PART section whose first page does not name its block, which was last named in a captured page.
 */
function withEarlyDevice(stream: Uint8Array): Uint8Array {
  const tokens = tokenize(stream)
  const devices = tokens.at(-1)!
  if (devices.kind !== 'opaque') throw new Error('the stream has no device state')
  const footer = Buffer.concat([Uint8Array.of(0x7e), devices.bytes.subarray(1, 5)])
  const section = devices.bytes.subarray(0, Buffer.from(devices.bytes).indexOf(footer) + footer.length)
  let block = ''
  for (const [at, token] of tokens.entries()) {
    if (token.kind === 'page' || token.kind === 'zero') block = token.name ?? block
    const next = tokens[at + 1]
    if (token.kind === 'part' && block === 'ram0' && next?.kind === 'page' && next.name === undefined) {
      return write([...tokens.slice(0, at), { kind: 'opaque', bytes: section }, ...tokens.slice(at)])
    }
  }
  throw new Error('no PART section begins with a page that continues ram0')
}

test(
  'between sections what the parser does not know passes, and pages that continue a captured block land in it',
  () =>
    migrated(pc, { capabilities: events, guest: 'run' }, async ({ stream, memory, target }) => {
      const { pages, reason } = await loadApart(target, withEarlyDevice(stream))
      assert.ok(pages > 10, `${pages} pages were captured before`)
      assert.is(reason, 'device state before the end of RAM')
      assert.is(Buffer.compare(await memoryOf(target), memory), 0)
    }),
  { skip },
)

test.run()
