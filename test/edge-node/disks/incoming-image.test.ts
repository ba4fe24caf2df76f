// An image that arrives by chunks: only what is missing is asked for, only what is right is written, and what an
// earlier attempt left is never trusted.
import { randomBytes } from 'node:crypto'
import { open, readFile, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { writeDiskBatch } from '../../../edge-node/disks/batch.ts'
import { CHUNK_BYTES } from '../../../edge-node/disks/chunk-tree.ts'
import { hashFile } from '../../../edge-node/disks/hash-file.ts'
import { createImageLeaves } from '../../../edge-node/disks/image-leaves.ts'
import { IncomingImage } from '../../../edge-node/disks/incoming-image.ts'
import type { Leaves } from '../../../edge-node/disks/leaves.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'

const test = suite('edge-node/disks/incoming-image', { ms: 60_000 })

const GIB = 1024 ** 3
const noInflate = (): Uint8Array => {
  throw new Error('nothing is compressed here')
}

async function rootOf(path: string): Promise<{ root: string; sizeBytes: number }> {
  await using file = await open(path)
  const { size, blocks } = await file.stat()
  return { root: await hashFile({ fd: file.fd, bytes: size, isSparse: blocks * 512 < size }), sizeBytes: size }
}

/** Sends the list of `leaves`, in pieces of three. */
function list(incoming: IncomingImage, leaves: Leaves): void {
  for (const { first, hashes } of leaves.runs(3)) incoming.list(first, hashes)
}

async function chunkOf(path: string, chunk: number): Promise<Uint8Array> {
  await using file = await open(path)
  const bytes = Buffer.alloc(CHUNK_BYTES)
  const { bytesRead } = await file.read(bytes, 0, CHUNK_BYTES, chunk * CHUNK_BYTES)
  return bytes.subarray(0, bytesRead)
}

function payloadOf(chunk: number, bytes: Uint8Array): Uint8Array {
  const payload = new Uint8Array(bytes.length + 64)
  return payload.subarray(0, writeDiskBatch(payload, 0, [{ first: chunk, count: 1, isZero: false }], [bytes]))
}

/** Ten chunks and a half: data, holes, data, and a short last one. */
async function scene() {
  const folder = await tempFolder()
  const source = join(folder.path, 'source')
  const content = Buffer.alloc(10 * CHUNK_BYTES + 100)
  for (const chunk of [0, 1, 2, 3, 7, 10]) randomBytes(chunk === 10 ? 100 : CHUNK_BYTES).copy(content, chunk * CHUNK_BYTES)
  await writeFile(source, content)
  const facts = { path: source, ...(await rootOf(source)) }
  const leaves = await createImageLeaves().of(facts, facts.sizeBytes)
  return {
    folder,
    source,
    content,
    facts,
    leaves,
    part: join(folder.path, 'part'),
    [Symbol.asyncDispose]: () => folder[Symbol.asyncDispose](),
  }
}

const runsOf = (missing: { runs(): Iterable<{ first: number; count: number }> }) =>
  [...missing.runs()].map(({ first, count }) => [first, count])

test('only chunks that are no zeros are asked for; a later attempt asks for the rest, and for what was lost or altered', async () => {
  await using at = await scene()
  const first = new IncomingImage(at.part, at.facts)
  list(first, at.leaves)
  assert.equal(runsOf(await first.missing()), [
    [0, 4],
    [7, 1],
    [10, 1],
  ])
  for (const chunk of [1, 2, 10]) await first.apply(payloadOf(chunk, await chunkOf(at.source, chunk)), noInflate)
  assert.equal(first.figures, { bytesTotal: 6 * CHUNK_BYTES, bytesDone: 3 * CHUNK_BYTES, bytesReceived: 2 * CHUNK_BYTES + 100 })
  await first.close()
  // A write that a power loss took back, and one into what must be zeros.
  await using file = await open(at.part, 'r+')
  await file.write(Buffer.alloc(CHUNK_BYTES), 0, CHUNK_BYTES, 2 * CHUNK_BYTES)
  await file.write(Buffer.from('x'), 0, 1, 5 * CHUNK_BYTES)

  const second = new IncomingImage(at.part, at.facts)
  list(second, at.leaves)
  assert.equal(runsOf(await second.missing()), [
    [0, 1],
    [2, 2],
    [7, 1],
  ])
  for (const chunk of [0, 2, 3, 7]) await second.apply(payloadOf(chunk, await chunkOf(at.source, chunk)), noInflate)
  await second.whole
  await second.finish()
  await second.close()
  assert.ok((await readFile(at.part)).equals(at.content))
})

test('a list that does not give the root, a chunk that is not of the list, and one that nobody asked for are refused', async () => {
  await using at = await scene()
  const other = new IncomingImage(at.part, { ...at.facts, root: '0'.repeat(64) })
  list(other, at.leaves)
  assert.is(await codeOf(() => other.missing()), 'IMAGE_MISMATCH')
  const short = new IncomingImage(at.part, at.facts)
  assert.is(await codeOf(() => short.missing()), 'IMAGE_MISMATCH')

  const incoming = new IncomingImage(at.part, at.facts)
  list(incoming, at.leaves)
  assert.is(await codeOf(async () => incoming.list(3, Buffer.alloc(32))), 'FRAME_MALFORMED', 'backwards')
  await incoming.missing()
  const zeros = await chunkOf(at.source, 5)
  assert.is(await codeOf(() => incoming.apply(payloadOf(5, zeros), noInflate)), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => incoming.apply(payloadOf(1, zeros), noInflate)), 'IMAGE_MISMATCH')
  assert.ok(Buffer.from(await chunkOf(at.part, 1)).equals(zeros), 'nothing of it is written')
  await incoming.close()
  assert.is(await codeOf(async () => new IncomingImage(at.part, at.facts).list(11, Buffer.alloc(32))), 'FRAME_MALFORMED')
})

test('300 GiB with a few chunks of data take no more time than these', async () => {
  await using folder = await tempFolder()
  const [source, part] = [join(folder.path, 'source'), join(folder.path, 'part')]
  await writeFile(source, '')
  await truncate(source, 300 * GIB)
  const places = [3, 1_000_000, 4_000_001]
  await using file = await open(source, 'r+')
  for (const chunk of places) await file.write(randomBytes(100), 0, 100, chunk * CHUNK_BYTES + 7)
  const facts = { path: source, ...(await rootOf(source)) }
  const leaves = await createImageLeaves().of(facts, facts.sizeBytes)
  const incoming = new IncomingImage(part, facts)
  list(incoming, leaves)
  assert.equal(
    runsOf(await incoming.missing()),
    places.map(chunk => [chunk, 1]),
  )
  for (const chunk of places) await incoming.apply(payloadOf(chunk, await chunkOf(source, chunk)), noInflate)
  await incoming.finish()
  await incoming.close()
  assert.equal(await rootOf(part), { root: facts.root, sizeBytes: facts.sizeBytes })
  assert.ok((await stat(part)).blocks * 512 < 1024 ** 2)
})

test('an image whose file has another content than its root says is read to no end', async () => {
  await using at = await scene()
  const facts = { path: at.source, root: '1'.repeat(64) }
  assert.is(await codeOf(() => createImageLeaves().of(facts, at.facts.sizeBytes)), 'IMAGE_CHANGED')
  // A disk that is larger than its image has zeros behind it, also within the image's last chunk.
  const size = at.facts.sizeBytes + CHUNK_BYTES
  const larger = await createImageLeaves().of(at.facts, size)
  await truncate(at.source, size)
  assert.is(larger.root(), (await rootOf(at.source)).root)
})

test.run()
