// The parts of bench:disk that compute: cases, medians, verdicts, table, the oracle. The moves themselves are in
// disk.serial.test.ts.
import { randomBytes } from 'node:crypto'
import { stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { BASES, CONTENT_BYTES, DISK_BYTES, DISK_CELLS, IMAGE, specOf } from '../../bench/disk/cases.ts'
import { writeContent } from '../../bench/disk/content.ts'
import { type Outcome, p99, summarise } from '../../bench/disk/outcome.ts'
import { diskTable, judge } from '../../bench/disk/verdicts.ts'
import { createOracle } from '../../bench/wan/compress-distinct.ts'
import { disksOf, isLocal, parseSpec } from '../../edge-node/vm/spec.ts'
import { MIB } from '../../wire/units.ts'
import { assert, suite } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const test = suite('bench: disk')

const outcome = (mover: string, which: string, totalMs: number, bytesForth: number, more: Partial<Outcome> = {}): Outcome => ({
  ...{ cell: '100/40', mover, case: which, repetition: 1, totalMs, downtimeMs: 300, bytesForth, bytesBack: 1e6, cpuSeconds: 3 },
  ...{ calmP99Us: 2000, busyP99Us: 3000, bad: 0, ...more },
})

test('the VM has a local disk, on an image or on nothing', () => {
  assert.is(DISK_CELLS.length, 3)
  const images = BASES.map(({ name }) => {
    const [disk] = disksOf(parseSpec(specOf(name)))
    return disk && isLocal(disk) ? disk.image : 'none'
  })
  assert.equal(images, [undefined, IMAGE])
})

test('the content is the same in every run, smaller than the disk, and has holes', async () => {
  await using folder = await tempFolder()
  const [one, two] = [join(folder.path, 'one'), join(folder.path, 'two')]
  await writeContent(one)
  await writeContent(two)
  const oracle = createOracle()
  await oracle.addFile(one, CONTENT_BYTES, 65_536, two)
  assert.is((await oracle.end()).distinctBytes, 0)
  const { size, blocks } = await stat(one)
  assert.is(size, CONTENT_BYTES)
  assert.ok(size < DISK_BYTES && blocks * 512 < size)
})

test('the oracle counts distinct pieces that the target lacks', async () => {
  await using folder = await tempFolder()
  const [file, held] = [join(folder.path, 'file'), join(folder.path, 'held')]
  const [a, b] = [randomBytes(65_536), randomBytes(65_536)]
  await writeFile(file, Buffer.concat([a, b, b, Buffer.alloc(MIB - 3 * 65_536)]))
  await writeFile(held, a)
  const oracle = createOracle()
  await oracle.addFile(file, MIB, 65_536, held)
  const { distinctBytes, compressedBytes } = await oracle.end()
  assert.is(distinctBytes, 65_536)
  assert.ok(compressedBytes > 65_000 && compressedBytes < 66_000)
})

test('the goals are held against QEMU, the first move, the oracle and the calm before', () => {
  const rows = summarise([
    outcome('godwit', 'nothing', 10_000, 50e6, { oracleBytes: 45e6, busyP99Us: 9000 }),
    outcome('qemu', 'nothing', 14_000, 100e6),
    outcome('godwit', 'back to nothing', 10_000, 50e6),
    outcome('godwit', 'image', 10_000, 50e6, { failure: 'not done in 300 s' }),
  ])
  const verdicts = judge(rows).map(({ guest, what, isReached }) => `${guest}: ${what}: ${isReached}`)
  assert.equal(verdicts, [
    'nothing: at least 1.3 times as fast as QEMU: true',
    'nothing: bytes at most 1.3 times the oracle: true',
    "nothing: p99 of the guest's writes at most 2 times: false",
    'back to nothing: the way back takes 10 times fewer bytes: false',
    "back to nothing: p99 of the guest's writes at most 2 times: true",
    'image: the move is done: false',
  ])
  assert.is(diskTable(rows).split('\n').length, 6)
  assert.ok(diskTable(rows).includes('1x not done in 300 s'))
})

test('p99 is a value that was measured', () => {
  assert.is(p99([]), undefined)
  assert.is(p99([5]), 5)
  assert.is(p99(Array.from({ length: 200 }, (_, at) => at)), 198)
})

test.run()
