// npm run test:repeat: runs test files many times, beside busy loops. Enters: files, times, load. Leaves: a line for
// each run, the output of each red run in a file, what failed how often, and last `N passed, N failed`; exit code 1
// when a run failed or none passed.
import { type ChildProcess, spawn } from 'node:child_process'
import { globSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { readArguments, runScript, UsageError, wholeNumber } from '../../ops/script.ts'
import { runFile, type Verdict } from '../support/run-file.ts'
import { realFiles } from './files.ts'

const USAGE = `Usage: npm run test:repeat -- [--times N] [--load K] [--deadline SECONDS] [--out FOLDER] [--list] [FILE ...]

  FILE                a part of a test file's path (default: all files that use real QEMUs, processes, sockets or clocks, see test/repeat/files.ts)
  --times N           how often each file is run (default 20): all files once, then all again
  --load K            busy loops that run beside them (default 0)
  --deadline SECONDS  for each run (default 600)
  --out FOLDER        where the output of each failed run goes (default .cache/test-repeat)
  --list              print the files and run nothing
`
const here = dirname(fileURLToPath(import.meta.url))

type Wish = ReturnType<typeof read>

function read() {
  const { values, positionals } = readArguments({
    allowPositionals: true,
    options: {
      times: { type: 'string', default: '20' },
      load: { type: 'string', default: '0' },
      deadline: { type: 'string', default: '600' },
      out: { type: 'string', default: join(here, '../../.cache/test-repeat') },
      root: { type: 'string', default: dirname(here) },
      list: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  const root = resolve(values.root)
  return {
    ...values,
    root,
    times: wholeNumber('--times', values.times, { min: 1, max: 100_000 }),
    load: wholeNumber('--load', values.load, { max: 256 }),
    deadlineMs: 1000 * wholeNumber('--deadline', values.deadline, { min: 1, max: 86_400 }),
    files: chosen(root, positionals),
  }
}

function chosen(root: string, parts: readonly string[]): string[] {
  const all = globSync('**/*.test.ts', { cwd: root }).sort()
  const wanted = parts.map(part => part.replace(/^\.?\/?test\//, ''))
  const idle = wanted.find(part => !all.some(name => name.includes(part)))
  if (idle !== undefined) throw new UsageError(`no test file's path has '${idle}' in it`)
  const files = wanted.length > 0 ? all.filter(name => wanted.some(part => name.includes(part))) : realFiles(root)
  if (files.length === 0) throw new UsageError(`there is no test file in ${root}`)
  return files
}

function startLoad(count: number) {
  const loops: ChildProcess[] = Array.from({ length: count }, () => spawn(process.execPath, [join(here, 'busy.js')], { stdio: 'ignore' }))
  return {
    [Symbol.dispose]() {
      for (const loop of loops) loop.kill('SIGKILL')
    },
  }
}

type Failure = { name: string; round: number; reasons: string[]; log: string }

function keep(out: string, name: string, round: number, { reasons, output }: Verdict): Failure {
  mkdirSync(out, { recursive: true })
  const log = join(out, `${name.replaceAll('/', '_')}.${round}.log`)
  writeFileSync(log, `${reasons.join('\n')}\n\n${output}`)
  return { name, round, reasons, log }
}

async function repeat({ root, files, times, load, deadlineMs, out }: Wish): Promise<number> {
  const interrupted = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => interrupted.abort())
  const { signal } = interrupted
  rmSync(out, { recursive: true, force: true })
  using _ = startLoad(load)
  const failures: Failure[] = []
  let passed = 0
  let skipped = 0
  for (let round = 1; round <= times; round++)
    for (const name of files) {
      if (signal.aborted) break
      const verdict = await runFile(join(root, name), { deadlineMs, signal })
      if (signal.aborted) break
      const isRed = verdict.reasons.length > 0
      const word = isRed ? 'FAIL' : verdict.passed > 0 ? 'ok  ' : 'skip'
      console.log(`${word}  ${round}/${times}  ${name}  (${(verdict.tookMs / 1000).toFixed(1)} s)`)
      if (isRed) failures.push(keep(out, name, round, verdict))
      else if (verdict.passed > 0) passed++
      else skipped++
    }
  for (const [name, all] of Map.groupBy(failures, failure => failure.name)) {
    console.log(`\n${name}: ${all.length} of ${times} runs failed`)
    for (const { round, reasons, log } of all) console.log(`  run ${round}: ${reasons.join('; ')}\n    ${log}`)
  }
  if (signal.aborted) console.log('\ninterrupted: not all runs were made')
  if (skipped > 0) console.log(`\n${skipped} runs skipped all their tests: they count as nothing`)
  console.log(`\n${passed} passed, ${failures.length} failed`)
  return failures.length > 0 || passed === 0 || signal.aborted ? 1 : 0
}

await runScript(USAGE, async () => {
  const wish = read()
  if (wish.help) console.log(USAGE)
  else if (wish.list) console.log(wish.files.join('\n'))
  else return await repeat(wish)
  return 0
})
