// npm run fuzz -- [target ...] [--seconds N] [--executions N] [--seed N] [--blind] [--save] [--replay HEX]
// Fuzzes the targets one after the other, each in a thread under a watchdog, guided by V8's block coverage (not with --blind: then the seed alone fixes
// every input). Leaves: one line per target, every finding with seed and hex; exit code 1 when there is one. --save keeps in fuzz/corpus/ what reached new
// code; --replay runs one input on one target and shows what comes of it.
import { parseArgs } from 'node:util'
import { writeCorpus } from './corpus.ts'
import { execute } from './execute.ts'
import { TARGETS, targetNamed } from './targets.ts'
import { watch } from './watch.ts'
import type { WorkerReport } from './worker.ts'

const { values: flags, positionals } = parseArgs({
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

async function replay(name: string, hex: string): Promise<void> {
  const target = targetNamed(name)
  if (!target) throw new TypeError(`no target ${name}`)
  await target.setup?.()
  const verdict = await execute(target, new Uint8Array(Buffer.from(hex, 'hex')))
  console.log(verdict.problem === undefined ? verdict.outcome : verdict.error instanceof Error ? verdict.error.stack : verdict.problem)
  process.exitCode = verdict.problem === undefined ? 0 : 1
}

async function fuzzAll(names: readonly string[]): Promise<void> {
  const over = new AbortController()
  process.once('SIGINT', () => over.abort())
  const seconds =
    flags.executions === undefined ? Number(flags.seconds ?? 10) : flags.seconds === undefined ? undefined : Number(flags.seconds)
  for (const target of names) {
    if (over.signal.aborted) break
    const limits = {
      ...(seconds === undefined ? {} : { seconds }),
      ...(flags.executions === undefined ? {} : { executions: Number(flags.executions) }),
    }
    const report = await watch({ target, seed: flags.seed, blind: flags.blind, signal: over.signal, ...limits })
    showReport(report)
    if (flags.save) console.log(`  ${writeCorpus(target, report.kept)} inputs kept`)
    if (report.findings.length > 0) process.exitCode = 1
  }
}

const names = positionals.length > 0 ? positionals : TARGETS.map(({ name }) => name)
const unknown = names.filter(name => !targetNamed(name))
if (flags.help || unknown.length > 0) {
  if (unknown.length > 0) console.error(`no target ${unknown.join(', ')}`)
  console.log('npm run fuzz -- [target ...] [--seconds N] [--executions N] [--seed N] [--blind] [--save] [--replay HEX]\n')
  for (const { name, what } of TARGETS) console.log(`  ${name.padEnd(14)} ${what}`)
  process.exitCode = unknown.length > 0 ? 2 : 0
} else if (flags.replay !== undefined) await replay(names[0] ?? '', flags.replay)
else await fuzzAll(names)
