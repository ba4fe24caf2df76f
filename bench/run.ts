// npm run bench: the pipeline stage by stage, what deltas save, the relay, measurements over MQTT, what the durable commit costs, and the downtime of the demo as an outside observer sees it.
// Figures of one machine: compare what one run prints side by side, never runs of two machines.
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { loadSodium } from '../crypto/identity.ts'
import { benchCommit } from './commit.ts'
import { benchDelta } from './delta.ts'
import { benchMqtt } from './mqtt.ts'
import { benchPipeline } from './pipeline.ts'
import { benchRelay } from './relay.ts'

/** A command of its own, not a part of ours. */
const GODWIT = join(import.meta.dirname, '..', 'bin', 'godwit.js')
const PARTS = ['pipeline', 'delta', 'relay', 'mqtt', 'commit', 'downtime'] as const
type Part = (typeof PARTS)[number]

const USAGE = `Usage: npm run bench -- [PART ...] [OPTIONS]

Parts: ${PARTS.join(', ')} (default: all; about three minutes)

Options:
  --seconds N  how long to measure each thing (default 2)
  --json       print one JSON object on stdout
  --help       show this
`

type Demo = {
  ok: boolean
  results: { from: string; to: string; method: string; silenceMs: number; report: { downtimeMs: number; totalMs: number } }[]
}

/** The demo in a process of its own; its story goes to stderr. */
async function benchDowntime(): Promise<Demo> {
  const child = spawn(process.execPath, [GODWIT, 'demo', '--short', '--json'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', chunk => {
    text += chunk
  })
  await new Promise(resolve => child.once('close', resolve))
  return (JSON.parse(text) as { moves: Demo }).moves
}

function showDowntime({ results }: Demo): void {
  console.log('\ndowntime over 100 Mbit/s, 40 ms round trip; 384 MiB guest that rewrites 4 MiB/s (aim: at most 600 ms live)')
  for (const { from, to, method, silenceMs, report } of results) {
    const seen = `${silenceMs} ms seen from outside`.padStart(26)
    console.log(
      `  ${from} -> ${to} ${method.padEnd(5)} ${seen}, ${Math.round(report.downtimeMs)} ms reported, ${(report.totalMs / 1000).toFixed(1)} s in all`,
    )
  }
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    options: { seconds: { type: 'string', default: '2' }, json: { type: 'boolean', default: false }, help: { type: 'boolean' } },
    allowPositionals: true,
  })
  const seconds = Number(values.seconds)
  const unknown = positionals.filter(part => !PARTS.includes(part as Part))
  if (values.help || unknown.length > 0 || !(seconds > 0)) {
    process.stderr.write(`${unknown.length > 0 ? `error USAGE: no part '${unknown[0]}'\n` : ''}${USAGE}`)
    return values.help ? 0 : 2
  }
  await loadSodium()
  const { json } = values
  const wanted = (part: Part) => positionals.length === 0 || positionals.includes(part)
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

process.exitCode = await main()
