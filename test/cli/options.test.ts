import { command } from '../../cli/command.ts'
import { parseOptions } from '../../cli/options.ts'
import { didYouMean, editDistance } from '../../cli/suggest.ts'
import { formatBytes, formatDuration, formatEta, formatRate, parseDuration, parseSize } from '../../ops/units.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, suite, thrown } from '../support/suite.ts'

const test = suite('cli: options')

const sample = command({
  name: 'sample',
  summary: 'for tests',
  positionals: [
    { name: 'ONE', help: 'the first' },
    { name: 'TWO', help: 'the second', optional: true },
  ],
  options: {
    to: { kind: 'text', value: 'SITE', help: 'where', required: true, short: 't' },
    method: { kind: 'choice', choices: ['live', 'cold'], help: 'how' },
    downtime: { kind: 'duration', value: 'TIME', help: 'how long' },
    memory: { kind: 'size', value: 'SIZE', help: 'how much' },
    streams: { kind: 'integer', value: 'N', min: 1, max: 128, help: 'how many' },
    force: { kind: 'flag', help: 'really' },
  },
  examples: [],
  run: async () => 0,
})

const refusal = async (...words: string[]): Promise<string> => {
  const error = await thrown(() => parseOptions(sample, words))
  assert.ok(error instanceof GodwitError)
  assert.is(error.code, 'USAGE')
  assert.is(error.exitCode, 2)
  assert.is(error.hint, 'see godwit sample --help')
  return error.message
}

test('values come typed, in either form and any order', () => {
  const words = ['--downtime=1.5s', 'x', '-t', 'b', '--memory', '384MiB', '--streams', '8', '--force', '--method', 'cold']
  const { options, args } = parseOptions(sample, words)
  assert.equal(options, { to: 'b', method: 'cold', downtime: 1500, memory: 384 * 1024 * 1024, streams: 8, force: true })
  assert.equal(args, ['x'])
})

test('flags are false when absent, other options undefined; after -- all are arguments', () => {
  const { options, args } = parseOptions(sample, ['--to', 'b', 'x', '--', '--force'])
  assert.is(options['force'], false)
  assert.is(options['method'], undefined)
  assert.equal(args, ['x', '--force'])
})

test('--help wins over everything before --', () => {
  assert.ok(parseOptions(sample, ['--nonsense', '--help']).wantsHelp)
  assert.ok(parseOptions(sample, ['-h']).wantsHelp)
  assert.not.ok(parseOptions(sample, ['--to', 'b', '--', '--help']).wantsHelp)
})

test('each mistake is named, with what was expected', async () => {
  assert.is(await refusal('x', '--to', 'b', '--methd', 'live'), 'unknown option --methd (did you mean --method?)')
  assert.is(await refusal('x', '--to', 'b', '--xyzzy'), 'unknown option --xyzzy')
  assert.is(await refusal('x', '--to', 'b', '--method', 'could'), "--method 'could': expected live or cold (did you mean cold?)")
  assert.match(
    await refusal('x', '--to', 'b', '--downtime', '300'),
    /^--downtime '300': expected a number with ms, s, m, h or d, such as 300ms/,
  )
  assert.match(await refusal('x', '--to', 'b', '--memory', '384M'), /^--memory '384M': expected a number with B, KiB/)
  assert.is(await refusal('x', '--to', 'b', '--streams', '0'), "--streams '0': expected a whole number from 1 to 128")
  assert.is(await refusal('x', '--to', 'b', '--streams', '1e1'), "--streams '1e1': expected a whole number from 1 to 128")
  assert.is(await refusal('x', '--to'), '--to needs a value: SITE')
  assert.is(await refusal('x', '--to', '--force'), '--to needs a value: SITE')
  assert.is(await refusal('x', '--to='), "--to '': expected SITE")
  assert.is(await refusal('x', '--to', 'b', '--force=yes'), '--force takes no value')
  assert.is(await refusal('x'), '--to is missing: where')
  assert.is(await refusal('--to', 'b'), 'ONE is missing: the first')
  assert.is(await refusal('--to', 'b', '1', '2', '3'), "unexpected argument '3'")
})

test('durations', () => {
  const cases: [string, number | undefined][] = [
    ['300ms', 300],
    ['0ms', 0],
    ['1.5s', 1500],
    ['2m', 120_000],
    ['1h', 3_600_000],
    ['30d', 30 * 86_400_000],
    ['', undefined],
    ['5', undefined],
    ['-5s', undefined],
    ['5 s', undefined],
    ['5S', undefined],
    ['1e3ms', undefined],
    ['5constructor', undefined],
    ['999999999999999d', undefined],
  ]
  for (const [text, ms] of cases) assert.is(parseDuration(text), ms, text)
})

test('sizes', () => {
  const cases: [string, number | undefined][] = [
    ['0B', 0],
    ['384MiB', 402_653_184],
    ['1.5GiB', 1_610_612_736],
    ['100MB', 100_000_000],
    ['1.5B', undefined],
    ['384M', undefined],
    ['384', undefined],
    ['mib', undefined],
    ['99999999999TiB', undefined],
  ]
  for (const [text, bytes] of cases) assert.is(parseSize(text), bytes, text)
})

test('durations, bytes and rates as they are shown', () => {
  const durations: [number, string][] = [
    [0.25, '0.25 ms'],
    [999.4, '999 ms'],
    [999.6, '1.0 s'],
    [59_940, '59.9 s'],
    [59_960, '1 min 00 s'],
    [3_599_400, '59 min 59 s'],
    [3_600_000, '1 h 00 min'],
    [30 * 86_400_000, '30 d'],
  ]
  for (const [ms, text] of durations) assert.is(formatDuration(ms), text)
  const sizes: [number, string][] = [
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1 KiB'],
    [12_700, '12.4 KiB'],
    [402_653_184, '384 MiB'],
    [1_073_217_536, '1.0 GiB'],
    [5e15, '4547 TiB'],
  ]
  for (const [bytes, text] of sizes) assert.is(formatBytes(bytes), text)
  assert.is(formatRate(11_775_000), '94.2 Mbit/s')
  assert.is(formatRate(0), '0 bit/s')
  assert.is(formatRate(125_000_000), '1.0 Gbit/s')
})

test('a time to the end below a second is not exact', () => {
  assert.equal([0, 999, 1000, 90_000].map(formatEta), ['< 1 s', '< 1 s', '1.0 s', '1 min 30 s'])
})

test('a slip is one edit or two away, a swap counts once', () => {
  assert.is(editDistance('mirgate', 'migrate'), 1)
  assert.is(editDistance('', 'abc'), 3)
  assert.is(didYouMean('migrat', ['gateway', 'migrate']), ' (did you mean migrate?)')
  assert.is(didYouMean('zzz', ['gateway', 'migrate']), '')
})

test.run()
