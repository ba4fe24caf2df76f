import { appendFile, mkdir, readdir, truncate, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Revocations } from '../../../crypto/certificate.ts'
import { CHUNK_BYTES, leafOf } from '../../../edge-node/disks/chunk-tree.ts'
import { type About, Copies, markOf, writeAbout } from '../../../edge-node/disks/copies.ts'
import { applyHeld, heldParts, isHeld } from '../../../edge-node/disks/held.ts'
import { Leaves } from '../../../edge-node/disks/leaves.ts'
import { decodeNotes, encodeNotes } from '../../../edge-node/disks/notes.ts'
import { keepCopies } from '../../../edge-node/keep-copies.ts'
import { eventually } from '../../../ops/deadline.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { silentLog } from '../../../wire/log.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'

const test = suite('edge-node/disks/copies')

const leaf = (number: number) => leafOf(Buffer.from(`chunk ${number}`))

/** `chunks` chunks and a half one; those of `set` are not zeros. */
function leavesOf(chunks: number, set: Iterable<number>, salt = 0): { sizeBytes: number; leaves: Leaves } {
  const sizeBytes = chunks * CHUNK_BYTES + CHUNK_BYTES / 2
  const leaves = new Leaves(sizeBytes)
  for (const chunk of set) leaves.set(chunk, leaf(chunk + salt))
  return { sizeBytes, leaves }
}

test('notes give back every leaf, and nothing at every truncation, after any changed byte, for another size or base', () => {
  const base = { root: 'ab'.repeat(32), leaves: leavesOf(40, [1, 2, 30]).leaves }
  const { sizeBytes, leaves } = leavesOf(40, [1, 3, 4, 39, 40], 1000)
  const notes = encodeNotes(sizeBytes, base, leaves)
  assert.is(decodeNotes(notes, sizeBytes, base)?.root(), leaves.root())
  assert.ok(notes.length < 1000, 'chunks of the base take no room')
  for (let length = 0; length < notes.length; length++)
    assert.is(decodeNotes(notes.subarray(0, length), sizeBytes, base), undefined, `${length} bytes`)
  for (let at = 0; at < notes.length; at++) {
    const other = Buffer.from(notes)
    other[at]! ^= 1
    assert.is(decodeNotes(other, sizeBytes, base), undefined, `byte ${at}`)
  }
  assert.is(decodeNotes(notes, sizeBytes + 1, base), undefined)
  assert.is(decodeNotes(notes, sizeBytes, { ...base, root: '' }), undefined)
})

test('what the target holds comes to the source in parts of bounded size, whatever the pattern', () => {
  const chunks = 40_000
  const every = (step: number) => Array.from({ length: Math.floor(chunks / step) }, (_, i) => i * step)
  for (const set of [[], [chunks], every(1), every(2), every(37)]) {
    const base = leavesOf(chunks, every(5)).leaves
    const held = leavesOf(chunks, set, 7).leaves
    const there = base.copy()
    for (const part of heldParts(0, held, base)) {
      assert.ok(part.body.length <= 56_000 && part.runs <= 5000)
      applyHeld(part, [there])
    }
    for (let chunk = 0; chunk <= chunks; chunk++) assert.ok(isHeld(there.get(chunk), held.get(chunk)), `chunk ${chunk}`)
  }
})

test('parts that do not fit the disk are refused', async () => {
  const { leaves } = leavesOf(10, [3])
  const [part] = heldParts(0, leaves, leavesOf(10, []).leaves)
  const refused = (change: object) => codeOf(async () => applyHeld({ ...part!, ...change }, [leavesOf(2, []).leaves]))
  assert.is(await refused({}), 'FRAME_MALFORMED')
  assert.is(await refused({ disk: 1 }), 'FRAME_MALFORMED')
  assert.is(await refused({ runs: 9 }), 'FRAME_MALFORMED')
  assert.is(await refused({ runs: 0 }), 'FRAME_MALFORMED')
  assert.is(await refused({ body: Buffer.alloc(12).toString('base64') }), 'FRAME_MALFORMED')
})

const SIZE = 128 * 1024
const shape = { file: '0.raw', sizeBytes: SIZE, base: '' }
const about = (vm: string, more: Partial<About> = {}): About => ({
  ...{ version: 1, vm, epoch: 3, why: 'left', peer: { site: 'b', serial: '1'.repeat(32) }, at: 1000, disks: [shape] },
  ...more,
})

async function stage() {
  const folder = await tempFolder()
  const dir = join(folder.path, 'copies')
  const copies = new Copies({ dir, log: silentLog })
  /** A folder of disks of a VM, as one that has left leaves it. */
  const leave = async (vm: string, more: Partial<About> = {}) => {
    const from = join(folder.path, vm)
    await mkdir(from)
    await writeFile(join(from, '0.raw'), Buffer.alloc(SIZE, 7))
    await writeAbout(from, about(vm, more))
    return from
  }
  return { dir, copies, leave, at: (vm: string) => join(folder.path, vm), [Symbol.asyncDispose]: () => folder[Symbol.asyncDispose]() }
}

test('a copy is kept, listed with its size, and taken once; a later one replaces it', async () => {
  await using site = await stage()
  assert.equal(await site.copies.list(), [])
  assert.is(await site.copies.keep('vm-1', await site.leave('vm-1')), true)
  assert.is(await site.copies.keep('vm-2', await site.leave('vm-2', { at: 500, why: 'interrupted' })), true)
  const listed = await site.copies.list()
  assert.equal(
    listed.map(({ vm, why, peer }) => [vm, why, peer]),
    [
      ['vm-2', 'interrupted', 'b'],
      ['vm-1', 'left', 'b'],
    ],
  )
  assert.ok(listed[0]!.bytes >= SIZE)
  assert.is(await site.copies.keep('vm-1', await site.leave('vm-1', { epoch: 5 })), true)
  assert.is((await site.copies.list()).find(({ vm }) => vm === 'vm-1')?.epoch, 5)
  assert.is(await site.copies.take('vm-1', [shape], site.at('vm-1')), true)
  assert.equal((await readdir(site.at('vm-1'))).sort(), ['0.raw', 'copy.json'])
  assert.is(await site.copies.take('vm-1', [shape], site.at('again')), false)
})

test('a folder that does not say what it is, or is of another VM, is not kept', async () => {
  await using site = await stage()
  const from = await site.leave('vm-1', { vm: 'vm-2' })
  assert.is(await site.copies.keep('vm-1', from), false)
  await writeFile(join(from, 'copy.json'), '{"version": 1')
  assert.is(await site.copies.keep('vm-1', from), false)
  assert.equal(await site.copies.list(), [])
})

test('a copy of disks of another size, format, number or image is removed; so is one whose file is none of ours', async () => {
  await using site = await stage()
  const others = [
    [{ ...shape, sizeBytes: 2 * SIZE }],
    [{ ...shape, file: '0.qcow2' }],
    [shape, shape],
    [{ ...shape, base: 'c'.repeat(64) }],
  ]
  for (const wanted of others) {
    await site.copies.keep('vm-1', await site.leave('vm-1'))
    assert.is(await site.copies.take('vm-1', wanted, site.at('vm-1')), false)
    assert.equal(await site.copies.list(), [])
  }
  await site.copies.keep('vm-1', await site.leave('vm-1'))
  await truncate(join(site.dir, 'vm-1/0.raw'), 10)
  assert.is(await site.copies.take('vm-1', [shape], site.at('vm-1')), false)
  const qcow2 = { ...shape, file: '0.qcow2' }
  const from = await site.leave('vm-1', { disks: [qcow2] })
  await writeFile(join(from, '0.qcow2'), Buffer.alloc(SIZE))
  await site.copies.keep('vm-1', from)
  assert.is(await site.copies.take('vm-1', [qcow2], site.at('vm-1')), false)
})

test('copies are removed on request, by age, and with the certificate of the other site', async () => {
  await using site = await stage()
  const revoked = { site: 'c', serial: '2'.repeat(32) }
  for (const [vm, more] of [
    ['vm-1', {}],
    ['vm-2', { at: 2000 }],
    ['vm-3', { at: 3000, peer: revoked }],
    ['vm-4', { at: 4000 }],
  ] as const)
    await site.copies.keep(vm, await site.leave(vm, more))
  const names = async () => (await site.copies.list()).map(({ vm }) => vm)
  await site.copies.removeOlder(1000)
  assert.equal(await names(), ['vm-2', 'vm-3', 'vm-4'])
  await site.copies.removeOf(new Set([revoked.serial]))
  assert.equal(await names(), ['vm-2', 'vm-4'])
  await site.copies.remove('vm-4')
  assert.is(await codeOf(() => site.copies.remove('vm-4')), 'COPY_UNKNOWN')
  assert.is(await codeOf(() => site.copies.remove('../vms')), 'COPY_UNKNOWN')
  assert.equal(await names(), ['vm-2'])
  assert.equal(await readdir(site.dir), ['vm-2'])
})

test('where the file system is full the oldest copy goes, once for all who wait; then the error stands', async () => {
  await using site = await stage()
  for (const [vm, at] of [
    ['vm-1', 3000],
    ['vm-2', 2000],
    ['vm-3', 1000],
  ] as const)
    await site.copies.keep(vm, await site.leave(vm, { at }))
  const names = async () => (await site.copies.list()).map(({ vm }) => vm)
  const fullWhile = (copies: number) => async () => {
    if ((await names()).length >= copies) throw new GodwitError('DISK_FULL', 'no space left')
  }
  await Promise.all([1, 2, 3].map(() => site.copies.withRoom(fullWhile(3))))
  assert.equal(await names(), ['vm-2', 'vm-1'])
  const broken = async () => {
    throw new GodwitError('DISK_IO', 'broken')
  }
  assert.is(await codeOf(() => site.copies.withRoom(broken)), 'DISK_IO')
  assert.is((await names()).length, 2)
  assert.is(await codeOf(() => site.copies.withRoom(fullWhile(0))), 'DISK_FULL')
  assert.equal(await names(), [])
})

test('the keeper clears what a killed agent left, and looks at the age and at each new revocation list', async () => {
  await using site = await stage()
  const serial = '3'.repeat(32)
  for (const [vm, at] of [
    ['vm-1', 0],
    ['vm-2', 86_400_000],
  ] as const)
    await site.copies.keep(vm, await site.leave(vm, { at, peer: { site: 'b', serial } }))
  await mkdir(join(site.dir, 'vm-9'))
  let tell = () => {}
  let list: Revocations | undefined
  const watch = (listener: () => void) => {
    tell = listener
    return () => {}
  }
  const kept = await keepCopies({
    ...{ copies: site.copies, trust: { list: () => list, watch }, days: 1, now: () => 86_400_000, log: silentLog },
  })
  assert.equal(await readdir(site.dir), ['vm-2'])
  list = { number: 1, serials: new Set([serial]) } as unknown as Revocations
  tell()
  await eventually(async () => ((await site.copies.list()).length === 0 ? true : undefined), { ms: 5_000, what: 'no copy' })
  kept.close()
})

test('the mark of a file changes with every change of it, also when its times are set back', async () => {
  await using site = await stage()
  const path = join(await site.leave('vm-1'), '0.raw')
  await utimes(path, 1000, 1000)
  const before = await markOf(path)
  assert.is(await markOf(path), before)
  await appendFile(path, 'x')
  await truncate(path, SIZE)
  await utimes(path, 1000, 1000)
  assert.is.not(await markOf(path), before)
})

test.run()
