// npm run fuzz -- [target ...] [--seconds N] [--executions N] [--seed N] [--blind] [--save] [--replay HEX] Fuzzes the
// targets one after the other, each in a thread with a watchdog, guided by V8's block coverage (not with --blind: then
// the seed alone determines every input). Leaves: one line per target, every finding with seed and hex; exit code 1
// with a finding. --save stores inputs that reached new code in fuzz/corpus/; --replay runs one input on one target and
// shows the result.
import { decimalNumber, knownNames, readArguments, runScript, UsageError, wholeNumber } from '../ops/script.ts'
import { writeCorpus } from './corpus.ts'
import { execute } from './execute.ts'
import { TARGETS, targetNamed } from './targets.ts'
import { watch } from './watch.ts'
import type { WorkerReport } from './worker.ts'

const USAGE = `npm run fuzz -- [target ...] [--seconds N] [--executions N] [--seed N] [--blind] [--save] [--replay HEX]

${TARGETS.map(({ name, what }) => `  ${name.padEnd(14)} ${what}`).join('\n')}
`

type Wish = ReturnType<typeof read>

function read() {
  const { values, positionals } = readArguments({
    allowPositionals: true,
    options: {
      seconds: { type: 'string' },
      executions: { type: 'string' },
      seed: { type: 'string', default: String(Date.now() % 1_000_000) },
      blind: { type: 'boolean', default: false },
      save: { type: 'boolean', default: false },
      replay: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  })
  const all = TARGETS.map(({ name }) => name)
  const { seconds, executions, replay } = values
  if (replay !== undefined && (positionals.length !== 1 || !/^([0-9a-f]{2})*$/i.test(replay)))
    throw new UsageError('--replay needs one target, and its input in hex')
  return {
    ...values,
    names: positionals.length > 0 ? knownNames('target', positionals, all) : all,
    limits: {
      ...(seconds === undefined ? {} : { seconds: decimalNumber('--seconds', seconds, { min: 0.1, max: 1e7 }) }),
      ...(executions === undefined ? {} : { executions: wholeNumber('--executions', executions, { min: 1 }) }),
      ...(seconds === undefined && executions === undefined ? { seconds: 10 } : {}),
    },
  }
}

const HEX_SHOWN = 4096

function showFindings({ target, seed, findings }: WorkerReport): void {
  for (const { problem, input, name, stack } of findings) {
    console.log(`  FOUND ${target}: ${problem}`)
    console.log(`    seed ${seed}, ${input.length} bytes${name === undefined ? '' : `, the hostile input '${name}'`}`)
    const hex = Buffer.from(input.subarray(0, HEX_SHOWN)).toString('hex')
    if (name === undefined) console.log(`    npm run fuzz -- ${target} --replay ${hex}${input.length > HEX_SHOWN ? '...' : ''}`)
    if (stack !== undefined) console.log(stack.replace(/^/gm, '      '))
  }
}

function showReport(report: WorkerReport): void {
  const { target, executions, outcomes, features, kept, tookMs } = report
  const perSecond = Math.round(executions / (tookMs / 1000))
  const codes = Object.entries(outcomes)
    .sort(([, a], [, b]) => b - a)
    .map(([code, count]) => `${code} ${count}`)
  const covered = features > 0 ? `, ${features} features, corpus ${kept.length}` : ''
  console.log(`${target.padEnd(14)} ${String(executions).padStart(9)} executions, ${perSecond}/s${covered}: ${codes.join(', ')}`)
  showFindings(report)
}

async function replay(name: string, hex: string): Promise<number> {
  const target = targetNamed(name)!
  await target.setup?.()
  const verdict = await execute(target, new Uint8Array(Buffer.from(hex, 'hex')))
  console.log(verdict.problem === undefined ? verdict.outcome : verdict.error instanceof Error ? verdict.error.stack : verdict.problem)
  return verdict.problem === undefined ? 0 : 1
}

/** 1 if a target has a finding, or has executed nothing. */
async function fuzzAll({ names, seed, blind, save, limits }: Wish): Promise<number> {
  const over = new AbortController()
  process.once('SIGINT', () => over.abort())
  let code = 0
  for (const target of names) {
    if (over.signal.aborted) break
    const report = await watch({ target, seed, blind, signal: over.signal, ...limits })
    showReport(report)
    if (save) console.log(`  ${writeCorpus(target, report.kept)} inputs kept`)
    if (report.findings.length > 0 || (report.executions === 0 && !over.signal.aborted)) code = 1
  }
  return code
}

await runScript(USAGE, async () => {
  const wish = read()
  if (wish.help) {
    console.log(USAGE)
    return 0
  }
  return wish.replay === undefined ? await fuzzAll(wish) : await replay(wish.names[0]!, wish.replay)
})
