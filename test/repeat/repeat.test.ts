// npm run test:repeat finds a test that fails now and then, keeps what it printed, and takes its load away with it.
import { spawn } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { assert, suite } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'
import { realFiles } from './files.ts'

const test = suite('repeat', { ms: 120_000 })
const main = fileURLToPath(new URL('./main.ts', import.meta.url))
const support = new URL('../support/suite.ts', import.meta.url).href
const head = `import { appendFileSync, readFileSync } from 'node:fs'\nimport { suite, assert } from '${support}'\nconst test = suite('fixture')\n`
// In two parts, or the runner would find it in this very file.
const run = 'test.' + 'run()\n'

async function repeat(folder: string, ...words: string[]): Promise<{ code: number | null; out: string }> {
  const child = spawn(process.execPath, [main, '--root', folder, '--out', join(folder, 'out'), ...words], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let out = ''
  child.stdout.setEncoding('utf8').on('data', text => {
    out += text
  })
  const code = await new Promise<number | null>(resolve => child.once('close', resolve))
  return { code, out }
}

test('a file that is red the second time is found, with its output', async () => {
  await using folder = await tempFolder()
  const counter = JSON.stringify(join(folder.path, 'count'))
  const body = `appendFileSync(${counter}, 'x')\n  assert.is.not(readFileSync(${counter}, 'utf8').length, 2, 'the second time')`
  await writeFile(join(folder.path, 'flaky.test.ts'), `${head}test('one', () => {\n  ${body}\n})\n${run}`)
  await writeFile(join(folder.path, 'good.test.ts'), `${head}test('one', () => {})\n${run}`)
  const { code, out } = await repeat(folder.path, '--times', '3', '--load', '1', '.test.ts')
  assert.is(code, 1)
  assert.is(out.trimEnd().split('\n').at(-1), '5 passed, 1 failed')
  assert.match(out, 'flaky.test.ts: 1 of 3 runs failed')
  const log = /^ {4}(\/.*flaky\.test\.ts\.2\.log)$/m.exec(out)?.[1]
  assert.match(await readFile(log!, 'utf8'), 'the second time')
})

test('runs that skip everything are not green', async () => {
  await using folder = await tempFolder()
  await writeFile(join(folder.path, 'idle.test.ts'), `${head}test('one', () => {}, { skip: 'no such thing' })\n${run}`)
  const { code, out } = await repeat(folder.path, '--times', '2', 'idle')
  assert.is(code, 1)
  assert.is(out.trimEnd().split('\n').at(-1), '0 passed, 0 failed')
})

test('what uses processes, sockets, clocks or QEMU is chosen by what it imports', () => {
  const chosen = realFiles(fileURLToPath(new URL('..', import.meta.url)))
  for (const name of ['e2e/failures.serial.test.ts', 'edge-node/pages/pool.test.ts', 'cli/gateway.test.ts', 'hostile/resources.test.ts'])
    assert.ok(chosen.includes(name), name)
  for (const name of ['edge-node/pages/batch.test.ts', 'edge-node/pages/table.test.ts', 'wire/frame.test.ts'])
    assert.not.ok(chosen.includes(name), name)
})

test.run()
