import { closeSync, fstatSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { batchBufferBytes } from '../../../edge-node/pages/batch.ts'
import { loadZstd } from '../../../edge-node/pages/compress.ts'
import { applyBatch, createFileMemory, resolveReferences } from '../../../edge-node/pages/memory.ts'
import { PendingBatch } from '../../../edge-node/pages/pending.ts'
import { PAGE_BYTES } from '../../../wire/types.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { contentsOf, pageOf, proofHasher, ramMemory } from './support.ts'

const test = suite('pages: memory')
const zstd = await loadZstd()

function batch(fill: (pending: PendingBatch) => void): { kind: 'batch'; input: ArrayBuffer; bytes: number } {
  const pending = new PendingBatch(64, () => new ArrayBuffer(batchBufferBytes(64)), { hasher: proofHasher })
  fill(pending)
  const { buffer, bytes } = pending.take()
  return { kind: 'batch', input: buffer, bytes }
}

function temporaryFile(bytes: number) {
  const folder = mkdtempSync(join(tmpdir(), 'godwit-memory-'))
  const fd = openSync(join(folder, 'memory'), 'w+')
  ftruncateSync(fd, bytes)
  return {
    fd,
    [Symbol.dispose]() {
      closeSync(fd)
      rmSync(folder, { recursive: true })
    },
  }
}

test('neighbours are one write, zeros are written only where memory is not zero', () => {
  const memory = ramMemory([{ id: 0, bytes: 200 * PAGE_BYTES }])
  memory.write(120, pageOf(5))
  memory.writes = 0
  const result = applyBatch(
    zstd,
    memory,
    batch(pending => {
      for (const page of [3, 4, 5, 9]) pending.content(page, pageOf(page))
      for (let page = 20; page < 190; page++) pending.zero(page)
    }),
  )
  assert.is(memory.writes, 3)
  assert.is(result.pages, 4)
  assert.is(result.zeros, 170)
  assert.is(result.zerosWritten, 1)
  const expected = new Array(200).fill(0)
  for (const page of [3, 4, 5, 9]) expected[page] = page
  assert.equal(contentsOf(memory), expected)
})

test('references are read from their holders, over any number of pieces', () => {
  const memory = ramMemory([
    { id: 1, bytes: 4 * PAGE_BYTES },
    { id: 2, bytes: 300 * PAGE_BYTES },
  ])
  const holder = 2 ** 32 + 2
  memory.write(holder, pageOf(7))
  memory.write(holder + 1, pageOf(8))
  const references: number[] = []
  for (let page = 0; page < 200; page++) references.push(2 * 2 ** 32 + page, page % 3 ? holder : holder + 1)
  references.push(2 * 2 ** 32 + 299, holder, 2 ** 32, holder + 1)
  resolveReferences(memory, { kind: 'resolve', references: Float64Array.from(references) })
  const contents = contentsOf(memory)
  assert.equal(contents.slice(0, 4), [8, 0, 7, 8])
  for (let page = 0; page < 300; page++) assert.is(contents[4 + page], page < 200 ? (page % 3 ? 7 : 8) : page === 299 ? 7 : 0)
})

test('a malformed batch writes nothing', async () => {
  const memory = ramMemory([{ id: 0, bytes: 8 * PAGE_BYTES }])
  const bad = batch(pending => {
    pending.content(1, pageOf(1))
    pending.reference(2, 9)
  })
  assert.is(await codeOf(() => applyBatch(zstd, memory, bad)), 'FRAME_MALFORMED')
  assert.is(memory.writes, 0)
})

test('blocks of a file are written at their offsets, and zeros leave a sparse file sparse', () => {
  using file = temporaryFile(1024 * PAGE_BYTES)
  const memory = createFileMemory([
    { block: 4, fd: file.fd, bytes: 512 * PAGE_BYTES, offset: 512 * PAGE_BYTES },
    { block: 9, fd: file.fd, bytes: 256 * PAGE_BYTES, offset: 0 },
  ])
  const result = applyBatch(
    zstd,
    memory,
    batch(pending => {
      pending.content(4 * 2 ** 32 + 1, pageOf(41))
      pending.content(9 * 2 ** 32 + 255, pageOf(92))
      for (let page = 2; page < 512; page++) pending.zero(4 * 2 ** 32 + page)
      pending.reference(9 * 2 ** 32, 4 * 2 ** 32 + 1)
    }),
  )
  resolveReferences(memory, { kind: 'resolve', references: result.references })
  const read = (page: number) => {
    const bytes = new Uint8Array(PAGE_BYTES)
    readSync(file.fd, bytes, 0, PAGE_BYTES, page * PAGE_BYTES)
    return bytes
  }
  assert.equal(read(513), pageOf(41))
  assert.equal(read(255), pageOf(92))
  assert.equal(read(0), pageOf(41))
  assert.is(result.zerosWritten, 0)
  assert.ok(fstatSync(file.fd).blocks * 512 < 64 * PAGE_BYTES)
})

test.run()
