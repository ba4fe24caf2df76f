// The test runner: node bin/run.js test/run.ts [part of a path ...] [--jobs N] [--deadline SECONDS] [--root FOLDER]
// [--verbose]
// Enters: test files (*.test.ts), each run in its own process; *.serial.test.ts alone, after all others. Leaves: one
// line per file, the output of the red ones, skipped tests with their reasons, the slowest files, and always as the
// last line `N passed, N failed, N skipped`.
import { globSync } from 'node:fs'
import { dirname, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { readArguments, runScript, UsageError, wholeNumber } from '../ops/script.ts'
import { runFile, type Verdict } from './support/run-file.ts'

const USAGE = `Usage: npm test -- [PART ...] [--jobs N] [--deadline SECONDS] [--root FOLDER] [--verbose]

  PART                a part of a test file's path: only files with one of them are run, and each must match some
  --jobs N            files at a time (default 2); *.serial.test.ts run alone
  --deadline SECONDS  for each file (default 480)
  --root FOLDER       where the test files are (default: this folder)
  --verbose           print the output of green files too
`

type Wish = { jobs: number; deadlineMs: number; isVerbose: boolean; root: string; files: string[] }

const interrupted = new AbortController()
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => interrupted.abort())

const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`
const isSerial = (file: string) => file.endsWith('.serial.test.ts')

function read(): Wish {
  const { values, positionals } = readArguments({
    allowPositionals: true,
    options: {
      jobs: { type: 'string', default: '2' },
      deadline: { type: 'string', default: '480' },
      root: { type: 'string', default: dirname(fileURLToPath(import.meta.url)) },
      verbose: { type: 'boolean', default: false },
    },
  })
  const root = resolve(values.root)
  return {
    jobs: wholeNumber('--jobs', values.jobs, { min: 1, max: 64 }),
    deadlineMs: 1000 * wholeNumber('--deadline', values.deadline, { min: 1, max: 86_400 }),
    isVerbose: values.verbose,
    root,
    files: chosenFiles(root, positionals),
  }
}

function chosenFiles(root: string, positionals: readonly string[]): string[] {
  const all = globSync('**/*.test.ts', { cwd: root, exclude: ['**/node_modules/**'] }).sort()
  if (all.length === 0) throw new UsageError(`there is no test file in ${root}`)
  const wanted = positionals.map(text => text.replace(/^\.?\/?test\//, ''))
  const idle = wanted.find(part => !all.some(name => name.includes(part)))
  if (idle !== undefined) throw new UsageError(`no test file's path has '${idle}' in it`)
  return all.filter(name => wanted.length === 0 || wanted.some(part => name.includes(part))).map(name => resolve(root, name))
}

function report(verdict: Verdict, { root, isVerbose }: Wish): void {
  const { file, passed, failed, skipped, tookMs, reasons, output } = verdict
  const counts = `${passed} passed${failed ? `, ${failed} failed` : ''}${skipped ? `, ${skipped} skipped` : ''}`
  console.log(`${reasons.length === 0 ? 'ok  ' : 'FAIL'}  ${relative(root, file)}  (${counts}, ${seconds(tookMs)})`)
  for (const reason of reasons) console.log(`      ${reason}`)
  // What chance chose, and how to have it again: also of a green run.
  for (const [line] of output.matchAll(/repeat: .*/g)) console.log(`      ${line}`)
  if (reasons.length > 0 || isVerbose) console.log(output.replace(/^/gm, '    | '))
}

async function runAll(wish: Wish, files: string[], parallel: number): Promise<Verdict[]> {
  const verdicts: Verdict[] = []
  const queue = [...files]
  const worker = async () => {
    for (let file = queue.shift(); file && !interrupted.signal.aborted; file = queue.shift()) {
      const verdict = await runFile(file, { deadlineMs: wish.deadlineMs, signal: interrupted.signal })
      verdicts.push(verdict)
      report(verdict, wish)
    }
  }
  await Promise.all(Array.from({ length: parallel }, worker))
  return verdicts
}

function summarise(verdicts: Verdict[], { files, root }: Wish): number {
  const shortName = (file: string) => relative(root, file)
  const sum = (of: (verdict: Verdict) => number) => verdicts.reduce((total, verdict) => total + of(verdict), 0)
  const skips = verdicts.flatMap(({ file, skips }) => skips.map(text => `${shortName(file)}: ${text}`))
  if (skips.length > 0) console.log(`\nskipped:\n${skips.map(text => `  ${text}`).join('\n')}`)
  const slow = [...verdicts].sort((a, b) => b.tookMs - a.tookMs).slice(0, 5)
  if (verdicts.length > 5)
    console.log(`\nslowest:\n${slow.map(({ file, tookMs }) => `  ${seconds(tookMs)}  ${shortName(file)}`).join('\n')}`)
  const red = verdicts.filter(({ reasons }) => reasons.length > 0)
  if (red.length > 0) console.log(`\nfailed:\n${red.map(({ file, reasons }) => `  ${shortName(file)}: ${reasons.join('; ')}`).join('\n')}`)
  const notRun = files.length - verdicts.length
  if (notRun > 0) console.log(`\n${notRun} files were not run: the run was interrupted`)
  const failed = sum(({ failed }) => failed) + notRun
  console.log(`\n${sum(({ passed }) => passed)} passed, ${failed} failed, ${sum(({ skipped }) => skipped)} skipped`)
  return failed > 0 ? 1 : 0
}

await runScript(USAGE, async () => {
  const wish = read()
  const { files, jobs } = wish
  const verdicts = await runAll(
    wish,
    files.filter(file => !isSerial(file)),
    jobs,
  )
  verdicts.push(...(await runAll(wish, files.filter(isSerial), 1)))
  return summarise(verdicts, wish)
})
