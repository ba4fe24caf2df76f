// npm run bench: the stages of the pipeline, the savings of deltas, the relay, measurements over MQTT, the cost of the
// durable commit, and the downtime of the demo measured outside the guest. The figures are of one machine: compare
// figures of one run, never of two machines.
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { loadSodium } from '../crypto/identity.ts'
import { decimalNumber, knownNames, readArguments, runScript } from '../ops/script.ts'
import { benchCommit } from './commit.ts'
import { benchDelta } from './delta.ts'
import { benchMqtt } from './mqtt.ts'
import { benchPipeline } from './pipeline.ts'
import { benchRelay } from './relay.ts'

/** A separate command, not a part of this one. */
const GODWIT = join(import.meta.dirname, '..', 'bin', 'godwit.js')
const PARTS = ['pipeline', 'delta', 'relay', 'mqtt', 'commit', 'downtime'] as const
type Part = (typeof PARTS)[number]
/** Limit of one measurement: an hour. */
const SECONDS_MAX = 3600

const USAGE = `Usage: npm run bench -- [PART ...] [OPTIONS]

Parts: ${PARTS.join(', ')} (default: all; about three minutes)

Options:
  --seconds N  duration of each measurement (default 2)
  --json       print one JSON object on stdout
  --help       show this help
`

type Demo = {
  ok: boolean
  results: { from: string; to: string; method: string; silenceMs: number; report: { downtimeMs: number; totalMs: number } }[]
}

/** The demo as a separate process; its output goes to stderr. */
async function benchDowntime(): Promise<Demo> {
  const child = spawn(process.execPath, [GODWIT, 'demo', '--short', '--json'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', chunk => {
    text += chunk
  })
  const code = await new Promise(resolve => child.once('close', resolve))
  if (code !== 0) throw new Error(`the demo ended with exit code ${code}: nothing was measured`)
  return (JSON.parse(text) as { moves: Demo }).moves
}

function showDowntime({ results }: Demo): void {
  console.log('\ndowntime over 100 Mbit/s, 40 ms round trip; 384 MiB guest that rewrites 4 MiB/s (goal: at most 600 ms live)')
  for (const { from, to, method, silenceMs, report } of results) {
    const seen = `${silenceMs} ms measured outside the guest`.padStart(26)
    console.log(
      `  ${from} -> ${to} ${method.padEnd(5)} ${seen}, ${Math.round(report.downtimeMs)} ms reported, ${(report.totalMs / 1000).toFixed(1)} s in total`,
    )
  }
}

async function main(): Promise<number> {
  const { values, positionals } = readArguments({
    options: { seconds: { type: 'string', default: '2' }, json: { type: 'boolean', default: false }, help: { type: 'boolean' } },
    allowPositionals: true,
  })
  if (values.help) {
    process.stdout.write(USAGE)
    return 0
  }
  const seconds = decimalNumber('--seconds', values.seconds, { min: 0.1, max: SECONDS_MAX })
  const parts = knownNames('part', positionals, PARTS)
  await loadSodium()
  const { json } = values
  const wanted = (part: Part) => parts.length === 0 || parts.includes(part)
  const quiet = console.log
  const results: Record<string, unknown> = {}
  if (json) console.log = () => {}
  try {
    if (wanted('pipeline')) results['pipeline'] = await benchPipeline({ seconds, json: false })
    if (wanted('delta')) results['delta'] = await benchDelta()
    if (wanted('relay')) results['relay'] = await benchRelay({ seconds, json: false })
    if (wanted('mqtt')) results['mqtt'] = await benchMqtt({ seconds: Math.max(5, seconds), json: false })
    if (wanted('commit')) results['commit'] = await benchCommit({ migrations: Math.max(3, Math.round(2.5 * seconds)) })
    if (wanted('downtime')) {
      const demo = await benchDowntime()
      results['downtime'] = demo
      showDowntime(demo)
    }
  } finally {
    console.log = quiet
  }
  if (json) console.log(JSON.stringify(results))
  return 0
}

await runScript(USAGE, main)
