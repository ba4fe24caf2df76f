// Which blocks the target has, by their hash: what is found, what is forgotten, what is bounded.
import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createPageHasher } from '../../../crypto/channel/page-hash.ts'
import { loadSodium } from '../../../crypto/sodium.ts'
import { type ChunkHashes, countHashes, hashBlocks } from '../../../edge-node/disks/block-hashes.ts'
import { BlockIndex, NO_PLACE } from '../../../edge-node/disks/block-index.ts'
import { createBlockReader } from '../../../edge-node/disks/block-reader.ts'
import { ChunkSet } from '../../../edge-node/disks/chunk-set.ts'
import { CHUNK_BYTES, leafOf } from '../../../edge-node/disks/chunk-tree.ts'
import { createImageBlocks } from '../../../edge-node/disks/image-blocks.ts'
import { Leaves } from '../../../edge-node/disks/leaves.ts'
import { BLOCK_BYTES, CHUNK_BLOCKS, diskPlaceOf } from '../../../edge-node/disks/places.ts'
import { createRandom } from '../../../sim-network/random.ts'
import { assert, suite } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'

const test = suite('edge-node/disks/block-index')
await loadSodium()
const hasher = createPageHasher(new Uint8Array(32).fill(5))

/** As if the blocks of a chunk had these hashes; 0: zeros. */
function hashes(...numbers: number[]): ChunkHashes {
  const words = new Uint32Array(2 * CHUNK_BLOCKS)
  for (const [i, number] of numbers.entries()) words.set([number, number && 1], 2 * i)
  return words
}
const find = (index: BlockIndex, number: number) => index.find(Uint32Array.of(number, 1, 9, 9))

test('a block is found by its hash until its chunk is forgotten or has another content', () => {
  const index = new BlockIndex(2)
  index.put(0, 3, hashes(70, 0, 71))
  index.put(1, 0, hashes(80))
  assert.is(find(index, 70), diskPlaceOf(0, 48))
  assert.is(find(index, 71), diskPlaceOf(0, 50))
  assert.is(find(index, 80), diskPlaceOf(1, 0))
  assert.is(find(index, 81), NO_PLACE)
  index.put(0, 3, hashes(72))
  assert.is(find(index, 70), NO_PLACE)
  assert.is(find(index, 72), diskPlaceOf(0, 48))
  index.forget(1, 0)
  assert.is(find(index, 80), NO_PLACE)
  assert.is(index.has(1, 0), false)
  assert.is(index.blocks, 1)
})

test('a chunk that is pending is named by nobody, and the round learns who named it before', () => {
  const index = new BlockIndex(1)
  const pending = [new ChunkSet(8)]
  index.put(0, 3, hashes(70))
  index.watch(pending)
  index.named(find(index, 70), 4)
  assert.is(index.lastNamed(), 0)
  pending[0]!.add(3)
  assert.is(index.lastNamed(), 4)
  assert.is(find(index, 70), NO_PLACE)
  pending[0]!.delete(3)
  assert.is(find(index, 70), diskPlaceOf(0, 48))
})

test('whatever is put and forgotten, what is found has the hash, and what one block alone has is found', () => {
  const random = createRandom(7)
  const below = (n: number) => Math.floor(random.next() * n)
  const index = new BlockIndex(2)
  const model = new Map<number, number>()
  for (let step = 0; step < 3000; step++) {
    const [disk, chunk] = [below(2), below(300)]
    for (let i = 0; i < CHUNK_BLOCKS; i++) model.delete(diskPlaceOf(disk, chunk * CHUNK_BLOCKS + i))
    if (random.next() < 0.2) index.forget(disk, chunk)
    else {
      const numbers = Array.from({ length: CHUNK_BLOCKS }, () => (random.next() < 0.1 ? 0 : 1 + below(2 ** 31)))
      for (const [i, number] of numbers.entries()) if (number) model.set(diskPlaceOf(disk, chunk * CHUNK_BLOCKS + i), number)
      index.put(disk, chunk, hashes(...numbers))
    }
  }
  assert.is(index.blocks, model.size)
  const times = new Map<number, number>()
  for (const number of model.values()) times.set(number, (times.get(number) ?? 0) + 1)
  for (const [place, number] of model) {
    const found = find(index, number)
    assert.is(model.get(found), number)
    if (times.get(number) === 1) assert.is(found, place)
  }
  for (let i = 0; i < 1000; i++) assert.is(find(index, 2 ** 31 + 1 + below(2 ** 30)), NO_PLACE)
})

test('beyond its limit it knows no further blocks', () => {
  const index = new BlockIndex(1, 10)
  index.put(0, 0, hashes(1, 2, 3, 4, 5, 6))
  index.put(0, 1, hashes(11, 12, 13, 14, 15))
  assert.is(index.blocks, 6)
  assert.is(find(index, 11), NO_PLACE)
  index.forget(0, 0)
  index.put(0, 1, hashes(11, 12, 13, 14, 15))
  assert.is(find(index, 15), diskPlaceOf(0, CHUNK_BLOCKS + 4))
})

test('an image is read once, block by block, and what differs at the target is left out', async () => {
  await using folder = await tempFolder()
  const path = join(folder.path, 'image')
  const content = Buffer.alloc(3 * CHUNK_BYTES + 2 * BLOCK_BYTES)
  for (const block of [0, 5, 16, 49]) randomBytes(BLOCK_BYTES).copy(content, block * BLOCK_BYTES)
  await writeFile(path, content)
  const images = createImageBlocks(hasher)
  const leaves = new Leaves(content.length)
  for (const chunk of [0, 1, 3]) leaves.set(chunk, leafOf(content.subarray(chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES)))
  const [blocks, again] = await Promise.all([images.of({ path, root: 'r' }, leaves), images.of({ path, root: 'r' }, leaves)])
  assert.is(blocks, again)
  const index = new BlockIndex(1)
  index.begin(0, blocks, chunk => chunk !== 1)
  assert.is(index.blocks, 3)
  const hash = new Uint32Array(4)
  for (const [block, place] of [
    [0, 0],
    [5, 5],
    [16, NO_PLACE],
    [49, 49],
  ] as const) {
    hasher.hash(content.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES), new Uint8Array(hash.buffer))
    assert.is(index.find(hash), place)
  }
})

test('only whole blocks that are not zeros have a hash', () => {
  const chunk = Buffer.alloc(CHUNK_BYTES - 100, 1)
  chunk.fill(0, BLOCK_BYTES, 2 * BLOCK_BYTES)
  assert.is(countHashes(hashBlocks(hasher, chunk)), CHUNK_BLOCKS - 2)
})

test('blocks are read in few requests, in the order in which they are asked for', async () => {
  const disks = [randomBytes(64 * BLOCK_BYTES), randomBytes(20 * BLOCK_BYTES + 512)]
  let requests = 0
  const reader = createBlockReader(
    disks.map(bytes => ({
      sizeBytes: bytes.length,
      async read(offset, into) {
        requests++
        into.set(bytes.subarray(offset, offset + into.length))
      },
    })),
  )
  const wanted = [
    ...[diskPlaceOf(0, 9), diskPlaceOf(0, 8), diskPlaceOf(1, 19), diskPlaceOf(0, 10)],
    ...[diskPlaceOf(0, 63), diskPlaceOf(0, 9), diskPlaceOf(1, 17), diskPlaceOf(0, 12)],
  ]
  const into = Buffer.alloc(wanted.length * BLOCK_BYTES)
  assert.equal([...(await reader.read(Float64Array.from(wanted), into, false))], [])
  assert.is(requests, 3)
  const block = (disk: number, n: number) => disks[disk]!.subarray(n * BLOCK_BYTES, (n + 1) * BLOCK_BYTES)
  const expected = [block(0, 9), block(0, 8), block(1, 19), block(0, 10), block(0, 63), block(0, 9), block(1, 17), block(0, 12)]
  assert.is(Buffer.compare(into, Buffer.concat(expected)), 0)
  assert.ok(reader.has(diskPlaceOf(1, 19)))
  for (const place of [diskPlaceOf(1, 20), diskPlaceOf(0, 64), diskPlaceOf(2, 0)]) assert.is(reader.has(place), false)
})

test('blocks of chunks that are as the image has them are left to be read from its file', async () => {
  const served = Buffer.alloc(4 * CHUNK_BYTES, 7)
  const written = new ChunkSet(4)
  written.add(2)
  const read = async (offset: number, into: Uint8Array) => into.set(served.subarray(offset, offset + into.length))
  const reader = createBlockReader([{ sizeBytes: served.length, read, plain: { fd: 42, except: written } }])
  const wanted = [5, 2 * CHUNK_BLOCKS, 3 * CHUNK_BLOCKS + 1]
  const into = Buffer.alloc(wanted.length * BLOCK_BYTES)
  const left = await reader.read(Float64Array.from(wanted), into, false)
  assert.equal([...left], [0, 42, 5 * BLOCK_BYTES, 2, 42, (3 * CHUNK_BLOCKS + 1) * BLOCK_BYTES])
  assert.ok(into.subarray(BLOCK_BYTES, 2 * BLOCK_BYTES).every(byte => byte === 7))
  assert.ok(into.subarray(2 * BLOCK_BYTES).every(byte => byte === 0))
  assert.equal([...(await reader.read(Float64Array.from(wanted), into, true))], [])
  assert.ok(into.every(byte => byte === 7))
})

test.run()
