// The parts of bench:wan that compute: selection, medians, verdicts, table, picture, the results file. The runs
// themselves are the benchmark.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CELLS, choose, GUESTS, guestOptionsOf } from '../../bench/wan/cells.ts'
import type { BenchRun } from '../../bench/wan/outcome.ts'
import { plotSvg } from '../../bench/wan/plot.ts'
import { openResults } from '../../bench/wan/results.ts'
import { specOf } from '../../bench/wan/spec.ts'
import { judgeGoals, summarise } from '../../bench/wan/summary.ts'
import { goalsTable, resultsTable } from '../../bench/wan/table.ts'
import { VARIANTS } from '../../bench/wan/variants.ts'
import { watchLogs, workRate } from '../../bench/wan/watch.ts'
import { parseSpec } from '../../edge-node/vm/spec.ts'
import { createLink } from '../../sim-network/link.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('bench: wan')

const outcome = (variant: string, totalMs: number | undefined, more: Partial<BenchRun> = {}): BenchRun => ({
  ...{ cell: '100/80', guest: 'mixed', variant, repetition: 1, bytesAb: 100e6, bytesBa: 2e6, deliveredAb: 98e6, cpuSeconds: 5 },
  ...{ late1: 0.01, late5: 0, steal: 0.02, badLines: 0, slowdown: 0.1 },
  ...(totalMs === undefined ? { failure: 'not done in 120 s' } : { totalMs, downtimeMs: 400, isAtSwitchover: true }),
  ...more,
})

test('every cell is a link, and every guest a specification that QEMU gets as Godwit would give it', () => {
  for (const cell of CELLS) {
    createLink(cell.link, 1)
    for (const guest of GUESTS) {
      const spec = parseSpec(specOf(guest, cell))
      assert.ok((guestOptionsOf(guest, cell).fillBytes ?? 0) + 100e6 < spec.memoryBytes, `${cell.name} ${guest.name}`)
    }
  }
  assert.is(new Set(VARIANTS.map(({ name }) => name)).size, VARIANTS.length)
})

test('a selection is by name, and a wrong name says what there is', () => {
  assert.equal(
    choose(CELLS, '200/150/1%,10/50', 'cell').map(({ name }) => name),
    ['200/150/1%', '10/50'],
  )
  assert.is(choose(GUESTS, undefined, 'guest').length, GUESTS.length)
  assert.throws(() => choose(CELLS, 'x', 'cell'), /unknown cell 'x'; known are 10\/50/)
})

test('medians and ranges are over what was done; what was not done is counted', () => {
  const [row] = summarise([outcome('godwit', 9000), outcome('godwit', 11_000), outcome('godwit', 10_000), outcome('godwit', undefined)])
  assert.equal(row?.totalMs, { median: 10_000, low: 9000, high: 11_000 })
  assert.equal([row?.runs, row?.failures.length], [4, 1])
  assert.ok(Math.abs(row!.goodput!.median - 0.784) < 1e-9)
})

test('targets are held against the best variant of QEMU alone', () => {
  const rows = summarise(
    [
      outcome('godwit', 10_000),
      outcome('plain-bbr', 25_000),
      outcome('multifd-zstd1-bbr', 12_000, { downtimeMs: 390 }),
      outcome('cold-zstd3-bbr', 5000),
      outcome('xbzrle-bbr', undefined),
    ].map(run => ({ ...run, guest: 'patches' })),
  )
  const verdicts = judgeGoals(rows, () => 90)
  const of = (start: string) => verdicts.find(({ what }) => what.startsWith(start))
  assert.is(of('total time')?.isReached, false)
  assert.match(of('total time')?.figure ?? '', /multifd-zstd1-bbr 12\.0 s: 1\.20 times/)
  assert.is(of('downtime below')?.isReached, false)
  assert.is(of('goodput')?.isReached, false)
  assert.is(of('bytes')?.isReached, true)
  const alone = judgeGoals(summarise([outcome('godwit', 10_000), outcome('plain-bbr', undefined)]), () => undefined)
  assert.is(alone.find(({ what }) => what.startsWith('total'))?.isReached, true)
  const lost = judgeGoals(summarise([outcome('godwit', undefined), outcome('plain-bbr', 9000)]), () => undefined)
  assert.equal(
    lost.map(({ isReached }) => isReached),
    [false],
  )
})

test('the table has a line for every row, and the picture shows all of them', () => {
  const rows = summarise([outcome('godwit', 10_000), outcome('plain-bbr', undefined)])
  assert.is(resultsTable(rows).split('\n').length, 4)
  assert.ok(resultsTable(rows).includes('1x not done in 120 s'))
  assert.ok(
    goalsTable(judgeGoals(rows, () => undefined))
      .split('\n')
      .every(line => line.startsWith('|')),
  )
  const svg = plotSvg(rows)
  for (const word of ['godwit', 'plain-bbr', 'not done', '10.0 s', '400 ms']) assert.ok(svg.includes(word), word)
})

test('results survive an interruption', () => {
  const dir = mkdtempSync(join(tmpdir(), 'gwt-'))
  try {
    const path = join(dir, 'deep', 'results.jsonl')
    openResults(path).add(outcome('godwit', 10_000))
    const again = openResults(path)
    assert.ok(again.has(outcome('godwit', 1)) && !again.has(outcome('godwit', 1, { repetition: 2 })))
    again.add(outcome('plain-bbr', 20_000))
    assert.is(openResults(path).all().length, 2)
  } finally {
    rmSync(dir, { recursive: true })
  }
})

test('a guest is seen in the logs that QEMU writes, wherever it beats, and its work is counted', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'gwt-'))
  try {
    using watch = watchLogs({ a: join(dir, 'a.log'), b: join(dir, 'b.log') })
    writeFileSync(join(dir, 'a.log'), 'BEAT 1 10\nWORK writes=1 audited=2 ms=20\nBEAT 2 20\n')
    await watch.until('work', 'a', 5000)
    writeFileSync(join(dir, 'b.log'), 'BEAT 3 30\n')
    await watch.until('beat', 'b', 5000)
    assert.is(watch.work()[0]?.units, 3)
    // The VM comes back: a has a new log.
    rmSync(join(dir, 'a.log'))
    writeFileSync(join(dir, 'a.log'), 'BEAT 4 40\nWROTE us=7\n')
    await watch.until('wrote', 'a', 5000)
    assert.is(watch.writes()[0]?.us, 7)
    assert.equal([watch.witness.summary().missing, watch.witness.summary().beats], [0, 4])
  } finally {
    rmSync(dir, { recursive: true })
  }
  const work = [0, 1, 2, 3, 4].map(at => ({ atMs: at * 200, units: at * 10 }))
  assert.is(workRate(work, 0, 1000), 50)
  assert.is(workRate(work, 0, 200), undefined)
})

test.run()
