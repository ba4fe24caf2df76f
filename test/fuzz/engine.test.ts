import { startCoverage } from '../../fuzz/coverage.ts'
import { type FuzzOptions, fuzz } from '../../fuzz/engine.ts'
import { mutate } from '../../fuzz/mutate.ts'
import { mutateJson } from '../../fuzz/mutate-json.ts'
import { shrink } from '../../fuzz/shrink.ts'
import { demand, pieces, type Target } from '../../fuzz/target.ts'
import { watch } from '../../fuzz/watch.ts'
import { createRandom } from '../../sim-network/random.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('fuzzer', { ms: 60_000 })

const target = (run: Target['run'], more: Partial<Target> = {}): Target => ({
  ...{ name: 'planted', what: 'a bug that was planted', codes: ['FRAME_MALFORMED'], testRuns: 1000, run },
  seeds: () => [Uint8Array.from({ length: 40 }, (_, i) => i)],
  ...more,
})
const findings = async (options: FuzzOptions, executions = 4000) => (await fuzz(options, { executions })).findings

test('a planted bug is found, and shrunk to the bytes that matter', async () => {
  const broken = target(input => demand(!(input.includes(200) && input.length > 20), 'planted'))
  const [found] = await findings({ target: broken, seed: 1 })
  assert.is(found?.problem.startsWith('Finding: planted'), true)
  assert.is(found?.input.length, 21)
  assert.is(found?.input.filter(byte => byte !== 0).length, 1)
})

test('the same seed gives the same inputs, another seed others', async () => {
  const inputsOf = async (seed: number) => {
    const seen: string[] = []
    const recording = target(input => {
      seen.push(Buffer.from(input).toString('hex'))
      if (input.length % 2 === 0) throw new GodwitError('FRAME_MALFORMED')
    })
    await fuzz({ target: recording, seed }, { executions: 500 })
    return seen.join(' ')
  }
  assert.is(await inputsOf(7), await inputsOf(7))
  assert.is.not(await inputsOf(7), await inputsOf(8))
})

test('a code that is not the target’s, another error and no error class at all are findings', async () => {
  for (const thrown of [new GodwitError('INTERNAL', 'x'), new TypeError('x'), 'x']) {
    const broken = target(() => {
      throw thrown
    })
    assert.is((await findings({ target: broken, seed: 1 }, 10)).length, 1)
  }
  const known = target(() => {
    throw new GodwitError('FRAME_MALFORMED', 'as it should')
  })
  assert.is((await findings({ target: known, seed: 1 }, 10)).length, 0)
})

test('an error text that grows with the input, and memory that a header merely announces, are findings', async () => {
  const chatty = target(input => {
    throw new GodwitError('FRAME_MALFORMED', 'x'.repeat(input.length * 1000))
  })
  assert.match((await findings({ target: chatty, seed: 1 }, 10))[0]?.problem ?? '', /a message of \d+ characters/)
  let kept: Uint8Array
  const greed = (input: Uint8Array) => {
    kept = new Uint8Array(((input[0] ?? 0) & 15) * 1024 * 1024).fill(1)
  }
  const greedy = target(greed, { memoryBytes: 2 * 1024 * 1024 })
  const [found] = await findings({ target: greedy, seed: 1 }, 300)
  assert.match(found?.problem ?? '', /it allocates [\d.]+ MiB for \d+ bytes/)
  assert.ok(kept! !== undefined)
})

test('hostile inputs run as they are and are named', async () => {
  const hostile = { bomb: new Uint8Array(100_000).fill(9) }
  const broken = target(input => demand(input.length < 100_000, 'too long'), { hostile: () => hostile })
  const [found] = await findings({ target: broken, seed: 1 }, 50)
  assert.is(found?.name, 'bomb')
})

test('coverage leads to what chance does not: three bytes that are checked one after the other', async () => {
  const { guarded } = await import('./guarded.ts')
  const reached: number[] = []
  const deep = target(input => void reached.push(guarded(input)), { seeds: () => [new Uint8Array(3)], bytesMax: 3 })
  const deepest = async (options: Partial<FuzzOptions>) => {
    reached.length = 0
    await fuzz({ target: deep, seed: 3, ...options }, { executions: 30_000 })
    return Math.max(...reached)
  }
  // First, for V8 counts blocks only of functions that were compiled with the counters.
  const coverage = startCoverage(url => url.endsWith('guarded.ts'))
  let led: number
  try {
    led = await deepest({ coverage })
  } finally {
    coverage.close()
  }
  const blind = await deepest({})
  assert.ok(led > blind, `${led} led, ${blind} blind`)
})

test('alterations keep to the limit and never touch the input; JSON stays JSON', () => {
  const random = createRandom(5)
  const input = Uint8Array.from({ length: 64 }, (_, i) => i)
  const json = '{"a":[1,{"b":"text"}],"c":null}'
  let well = 0
  for (let i = 0; i < 2000; i++) {
    const out = mutate(input, random, { others: [input], words: [Buffer.from('word')], bytesMax: 80 })
    assert.ok(out.length <= 80)
    const text = mutateJson(json, random, [json]) ?? ''
    try {
      JSON.parse(text)
      well++
    } catch {}
  }
  assert.ok(well > 1900, `${well} of 2000`)
  assert.ok(input.every((byte, i) => byte === i))
})

test('pieces of an input are the input', () => {
  for (let length = 0; length < 300; length++) {
    const input = Uint8Array.from({ length }, (_, i) => i * length)
    assert.is(Buffer.compare(Buffer.concat(pieces(input)), input), 0)
  }
})

test('shrinking keeps what fails and ends within its budget', async () => {
  let runs = 0
  const judge = async (input: Uint8Array) => {
    runs++
    return input.filter(byte => byte === 7).length >= 3
  }
  const smallest = await shrink(new Uint8Array(500).fill(7), judge)
  assert.equal([...smallest], [7, 7, 7])
  runs = 0
  await shrink(new Uint8Array(5000).fill(7), judge, { runsMax: 100 })
  assert.ok(runs <= 100)
})

test('a thread that is asked to end reports what it has done', async () => {
  const over = new AbortController()
  setTimeout(() => over.abort(), 1500)
  const report = await watch({ target: 'batch', seed: '2', seconds: 600, blind: true, signal: over.signal })
  assert.is(report.findings.length, 0)
})

test('a target runs in a thread of its own; one that hangs is left behind, and its input is known', async () => {
  const report = await watch({ target: 'return-path', seed: '1', executions: 300, blind: false })
  assert.is(report.findings.length, 0)
  assert.ok(report.executions >= 300 && report.features > 50)
  const hung = await watch({
    target: 'hang',
    seed: '1',
    executions: 1,
    blind: true,
    hangMs: 1000,
    worker: new URL('./hang.ts', import.meta.url),
  })
  assert.match(hung.findings[0]?.problem ?? '', /does not end within/)
  assert.equal([...(hung.findings[0]?.input ?? [])], [1, 2, 3])
})

test.run()
