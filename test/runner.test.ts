// The runner itself, tried on small files written for the purpose: it must be red on everything that uvu alone lets
// pass as green.
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { readTotals, runFile, sourceFaults, type Verdict } from './support/run-file.ts'
import { assert, suite } from './support/suite.ts'

const support = fileURLToPath(new URL('./support/suite.ts', import.meta.url))
const runner = fileURLToPath(new URL('./run.ts', import.meta.url))
const uvu = import.meta.resolve('uvu')
const head = `import { suite, assert } from '${support}'\nconst test = suite('fixture')\n`
// In two parts, or the runner would find them in this very file.
const run = 'test.' + 'run()\n'
const only = 'o' + 'nly'
const limits = { deadlineMs: 8000, graceMs: 500, childGraceMs: 300 }
const test = suite('runner')

function fixtures(files: Record<string, string>) {
  const folder = mkdtempSync(join(tmpdir(), 'godwit-runner-'))
  for (const [name, source] of Object.entries(files)) writeFileSync(join(folder, name), source)
  return { folder, [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }) }
}

async function verdictOf(source: string, options: Partial<typeof limits> = {}): Promise<Verdict> {
  using temp = fixtures({ 'fixture.test.ts': source })
  return await runFile(join(temp.folder, 'fixture.test.ts'), { ...limits, ...options })
}

/** Whether a process runs; one that is dead but not yet collected does not. */
const isAlive = (pid: number) => {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return false
  }
}

test('a green file is green with its counts', async () => {
  const { reasons, passed, failed, skipped, skips } = await verdictOf(
    `${head}test('one', () => {})\ntest('two', () => {})\ntest('three', () => {}, { skip: 'no such engine' })\n${run}`,
  )
  assert.equal({ reasons, passed, failed, skipped }, { reasons: [], passed: 2, failed: 0, skipped: 1 })
  assert.equal(skips, ['fixture: three: no such engine'])
})

test('a failing test makes its file red and its message is in the output', async () => {
  const { reasons, passed, failed, output } = await verdictOf(
    `${head}test('one', () => {})\ntest('two', () => assert.is(1, 2, 'one is not two'))\n${run}`,
  )
  assert.equal({ passed, failed }, { passed: 1, failed: 1 })
  assert.equal(reasons, ['1 of 2 tests failed'])
  assert.match(output, 'one is not two')
})

test('a test whose fixture cannot be put away either shows both errors', async () => {
  const body = `await using x = { async [Symbol.asyncDispose]() { throw new Error('the fixture') } }; throw new Error('the test')`
  const { failed, output } = await verdictOf(`${head}test('one', async () => { ${body} })\n${run}`)
  assert.is(failed, 1)
  assert.match(output, 'the fixture')
  assert.match(output, 'the test')
})

test('a hanging test is ended by its own deadline', async () => {
  const { failed, output } = await verdictOf(`${head}test('hangs', () => new Promise(() => {}), { ms: 200 })\n${run}`)
  assert.is(failed, 1)
  assert.match(output, 'did not end within 200 ms')
})

test('a file that hangs outside its tests is killed with its children at the deadline', async () => {
  const source = `import { spawn } from 'node:child_process'\nconst child = spawn('sleep', ['300'], { detached: true })\nconsole.log('child', child.pid)\n`
  const { reasons, failed, output } = await verdictOf(`${source}setInterval(() => {}, 1000)\n`, { deadlineMs: 1500 })
  assert.is(failed, 1)
  assert.match(reasons[0] ?? '', 'did not end within 1.5 s')
  assert.not(isAlive(Number(/child (\d+)/.exec(output)?.[1])))
})

test('a file that does not end after its totals is red', async () => {
  const { reasons, passed, failed } = await verdictOf(`${head}test('one', () => { setInterval(() => {}, 1000) })\n${run}`)
  assert.match(reasons.join(), 'something is left open')
  assert.equal({ passed, failed }, { passed: 1, failed: 1 })
})

test('a process that a test leaves behind makes its file red and is killed', async () => {
  const body = `import { spawn } from 'node:child_process'\n${head}test('one', () => {
    const child = spawn('sleep', ['300'], { detached: true, stdio: 'ignore' })
    child.unref()
    console.log('child', child.pid)
  })\n${run}`
  const { reasons, output } = await verdictOf(body)
  assert.match(reasons.join(), 'left processes behind: sleep 300')
  assert.not(isAlive(Number(/child (\d+)/.exec(output)?.[1])))
})

test('a process with the environment of a QEMU, in a session of its own, is found and killed as well', async () => {
  const cage = fileURLToPath(new URL('../ops/cage.ts', import.meta.url))
  const body = `import { spawn } from 'node:child_process'\nimport { cleanEnvironment } from '${cage}'\n${head}test('one', () => {
    const child = spawn('sleep', ['60'], { stdio: 'ignore', detached: true, env: cleanEnvironment() })
    console.log('child ' + child.pid)
    child.unref()
  })\n`
  const { reasons, output } = await verdictOf(`${body}${run}`)
  assert.match(reasons.join(), 'left processes behind: sleep 60')
  assert.is(isAlive(Number(/child (\d+)/.exec(output)?.[1])), false)
})

test('a suite that is never run makes its file red', async () => {
  const { reasons, failed } = await verdictOf(`${head}test('one', () => {})\n`)
  assert.match(reasons.join(), 'is never run')
  assert.is(failed, 1)
})

test('a second suite that is never run makes its file red', async () => {
  const { reasons, passed, failed } = await verdictOf(
    `${head}test('one', () => {})\n${run}const more = suite('more')\nmore('two', () => {})\n`,
  )
  assert.match(reasons.join(), "'more' is never run")
  assert.equal({ passed, failed }, { passed: 1, failed: 1 })
})

test('a file with .only is red', async () => {
  const source = `import { suite } from '${uvu}'\nconst test = suite('x')\ntest('one', () => {})\ntest.${only}('two', () => {})\n${run}`
  const { reasons } = await verdictOf(source)
  assert.match(reasons.join(), 'uses .only')
})

test('a throwing before hook is red, although uvu exits with 0', async () => {
  const source = `import { suite } from '${uvu}'\nconst test = suite('x')\ntest.before(() => { throw new Error('no') })\ntest('one', () => {})\n${run}`
  const { reasons, failed } = await verdictOf(source)
  assert.equal(reasons, ['1 of 1 tests failed'])
  assert.is(failed, 1)
})

test('a file without tests, one that throws and one that ends early are red', async () => {
  assert.equal((await verdictOf(`${head}${run}`)).reasons, ['it has no tests'])
  assert.match((await verdictOf(`throw new Error('no')\n`)).reasons.join(), 'printed no totals')
  assert.match((await verdictOf(`${head}test('one', () => process.exit(0))\n${run}`)).reasons.join(), 'printed no totals')
})

test('an exit code other than 0 after green totals is red', async () => {
  const { reasons } = await verdictOf(`${head}test('one', () => { setTimeout(() => { throw new Error('late') }, 50) })\n${run}`)
  assert.equal(reasons, ['it exited with code 1'])
})

test('source faults see each suite by its name', () => {
  assert.equal(sourceFaults(`const a = suite('a')\na.${'run()'}\nconst b = suite('b')`).length, 1)
  assert.equal(sourceFaults(`const a = suite('a')\na.${'run()'}`), [])
})

test('the last totals count, and none are none', () => {
  assert.is(readTotals('nothing'), undefined)
  const text = '  Total:     3\n  Passed:    3\n  Skipped:   0\n\n\n  Total:     5\n  Passed:    4\n  Skipped:   1\n'
  assert.equal(readTotals(text), { total: 5, passed: 4, skipped: 1 })
})

test('the last line of a run is its counts and the exit code follows them', async () => {
  const good = `${head}test('one', () => {})\n${run}`
  using temp = fixtures({ 'a.test.ts': good, 'b.serial.test.ts': good, 'c.test.ts': `${head}test('bad', () => assert.ok(false))\n${run}` })
  const outcome = (...args: string[]) =>
    new Promise<{ code: number | null; lines: string[] }>(resolve => {
      const child = spawn(process.execPath, [runner, '--root', temp.folder, ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
      let text = ''
      child.stdout.on('data', chunk => {
        text += chunk
      })
      child.on('close', code => resolve({ code, lines: text.trimEnd().split('\n') }))
    })
  const all = await outcome()
  assert.equal([all.code, all.lines.at(-1)], [1, '2 passed, 1 failed, 0 skipped'])
  assert.match(all.lines.filter(line => /^(ok|FAIL)/.test(line)).at(-1) ?? '', 'b.serial.test.ts')
  const some = await outcome('a.test', 'b.serial', '--jobs', '1')
  assert.equal([some.code, some.lines.at(-1)], [0, '2 passed, 0 failed, 0 skipped'])
  const none = await outcome('no-such-file')
  assert.is(none.code, 2)
  // One part that matches does not hide another that does not.
  assert.is((await outcome('a.test', 'no-such-file')).code, 2)
})

test.run()
