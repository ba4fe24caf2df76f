// The test runner: node bin/run.js test/run.ts [part of a path ...] [--jobs N] [--deadline SECONDS] [--root FOLDER] [--verbose]
// Enters: test files (*.test.ts), each run in its own process; *.serial.test.ts alone, after all others. Leaves: one line per file, the output of
// the red ones, skipped tests with their reasons, the slowest files, and always as the last line `N passed, N failed, N skipped`.
import { globSync } from 'node:fs'
import { dirname, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { runFile, type Verdict } from './support/run-file.ts'

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    jobs: { type: 'string', default: '2' },
    deadline: { type: 'string', default: '240' },
    root: { type: 'string', default: dirname(fileURLToPath(import.meta.url)) },
    verbose: { type: 'boolean', default: false },
  },
})
const jobs = Math.max(1, Number(flags.jobs) || 1)
const deadlineMs = (Number(flags.deadline) || 240) * 1000
const root = resolve(flags.root)
const interrupted = new AbortController()
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => interrupted.abort())

const shortName = (file: string) => relative(root, file)
const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`
const isSerial = (file: string) => file.endsWith('.serial.test.ts')

function chosenFiles(): string[] {
  const wanted = positionals.map(text => text.replace(/^\.?\/?test\//, ''))
  return globSync('**/*.test.ts', { cwd: root, exclude: ['**/node_modules/**'] })
    .sort()
    .filter(name => wanted.length === 0 || wanted.some(part => name.includes(part)))
    .map(name => resolve(root, name))
}

function report(verdict: Verdict): void {
  const { file, passed, failed, skipped, tookMs, reasons, output } = verdict
  const counts = `${passed} passed${failed ? `, ${failed} failed` : ''}${skipped ? `, ${skipped} skipped` : ''}`
  console.log(`${reasons.length === 0 ? 'ok  ' : 'FAIL'}  ${shortName(file)}  (${counts}, ${seconds(tookMs)})`)
  for (const reason of reasons) console.log(`      ${reason}`)
  if (reasons.length > 0 || flags.verbose) console.log(output.replace(/^/gm, '    | '))
}

async function runAll(files: string[], parallel: number): Promise<Verdict[]> {
  const verdicts: Verdict[] = []
  const queue = [...files]
  const worker = async () => {
    for (let file = queue.shift(); file && !interrupted.signal.aborted; file = queue.shift()) {
      const verdict = await runFile(file, { deadlineMs, signal: interrupted.signal })
      verdicts.push(verdict)
      report(verdict)
    }
  }
  await Promise.all(Array.from({ length: parallel }, worker))
  return verdicts
}

function summarise(verdicts: Verdict[], files: string[]): void {
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
  if (files.length === 0) console.log('no test file matches')
  const failed = sum(({ failed }) => failed) + notRun + (files.length === 0 ? 1 : 0)
  process.exitCode = failed > 0 ? 1 : 0
  console.log(`\n${sum(({ passed }) => passed)} passed, ${failed} failed, ${sum(({ skipped }) => skipped)} skipped`)
}

const files = chosenFiles()
const verdicts = await runAll(
  files.filter(file => !isSerial(file)),
  jobs,
)
verdicts.push(...(await runAll(files.filter(isSerial), 1)))
summarise(verdicts, files)
