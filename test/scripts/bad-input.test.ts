// No script, test runner or benchmark is green, or begins anything, on input that is no number, out of range, or names
// nothing: exit code 2 and what was expected.
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { decimalNumber, knownNames, numberFromEnvironment, readArguments, UsageError, wholeNumber } from '../../ops/script.ts'
import { assert, suite, thrown } from '../support/suite.ts'

const test = suite('scripts: bad input', { ms: 230_000 })
const root = fileURLToPath(new URL('../..', import.meta.url))

const refused = async (body: () => unknown) => {
  const error = await thrown(body)
  assert.instance(error, UsageError)
  return (error as Error).message
}

test('numbers are numbers, within their range', async () => {
  assert.is(wholeNumber('--jobs', '8', { min: 1, max: 8 }), 8)
  for (const text of ['abc', '', ' ', '1e3', '0x10', '-1', '+1', '2.0', '2x', 'NaN', 'Infinity', '9', '0'])
    assert.is(await refused(() => wholeNumber('--jobs', text, { min: 1, max: 8 })), `--jobs '${text}': expected a whole number from 1 to 8`)
  assert.is(decimalNumber('--seconds', '2.5', { min: 0.1 }), 2.5)
  for (const text of ['abc', '', '0', '.5', '1e3', '-1', 'Infinity']) await refused(() => decimalNumber('--seconds', text, { min: 0.1 }))
})

test('names are known, options too, and so is the environment', async () => {
  assert.equal(knownNames('part', ['b'], ['a', 'b']), ['b'])
  assert.is(await refused(() => knownNames('part', ['b', 'x'], ['a', 'b'])), "unknown part 'x'; known are a, b")
  assert.match(await refused(() => readArguments({ args: ['--nope'], options: {} })), '--nope')
  assert.match(await refused(() => readArguments({ args: ['word'], options: {} })), 'word')
  assert.is(numberFromEnvironment({}, 'GODWIT_SEEDS', 16), 16)
  assert.is(numberFromEnvironment({ GODWIT_SEEDS: '3' }, 'GODWIT_SEEDS', 16), 3)
  await refused(() => numberFromEnvironment({ GODWIT_SEEDS: '' }, 'GODWIT_SEEDS', 16))
})

/** Each script with inputs that must end it. */
const SCRIPTS: [file: string, ...inputs: string[]][] = [
  ['test/run.ts', '--jobs abc', '--jobs 0', '--deadline x', 'no-such-file', 'ops/store no-such-file', '--root /nonexistent', '--nope'],
  ['test/simulation/ownership/main.ts', '--seeds abc', '--seeds 0', '--seed abc', '--walk --pairs x', '--mutants --mutant none', '--nope'],
  ['test/faults/run.ts', '--case abc', '--case 31-24', '--case 24,9999', '--case', '--nope'],
  ['test/repeat/main.ts', '--times abc', '--times 0', '--load x', 'no-such-file'],
  ['test/soak/main.ts', '--minutes abc', '--vms 0', '--steps x', '--only nothing', '--nope'],
  ['test/churn/main.ts', '--cancelled abc', '--vms 0', '--minutes x', 'word'],
  ['bench/run.ts', '--seconds abc', '--seconds 0', '--seconds Infinity', 'nothing', '--nope'],
  ['bench/attack.ts', '--seconds abc', '--seconds 0', '--nope'],
  ['bench/mqtt.ts', '--rate abc', '--seconds 0'],
  ['bench/pipeline.ts', '--nope'],
  ['bench/wan/run.ts', '--reps abc', '--reps 0', '--timeout x', '--budget x', '--cells nowhere', '--nope'],
  ['fuzz/run.ts', '--seconds abc', '--executions 0', 'nothing', 'frames --replay xyz', '--replay 00', '--nope'],
  ['scripts/check.ts', '--nope', 'word'],
  ['scripts/asyncapi.ts', 'word'],
  ['scripts/record-streams.ts', 'nothing'],
  ['scripts/setup.js', '--nope'],
]

function run(file: string, words: string[]): Promise<{ code: number | null; err: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [file, ...words], { cwd: root, stdio: ['ignore', 'ignore', 'pipe'] })
    let err = ''
    child.stderr.setEncoding('utf8').on('data', text => {
      err += text
    })
    child.once('error', reject)
    child.once('close', code => resolve({ code, err }))
  })
}

for (const [file, ...inputs] of SCRIPTS) {
  test(`${file}: ${inputs.join('; ')}`, async () => {
    const results = await Promise.all(inputs.map(async input => ({ input, ...(await run(file, input.split(' ').filter(Boolean))) })))
    for (const { input, code, err } of results) {
      assert.is(code, 2, `${input}: ${err}`)
      assert.match(err, file.endsWith('.js') ? 'unknown option' : 'error USAGE: ', input)
    }
  })
}

test.run()
