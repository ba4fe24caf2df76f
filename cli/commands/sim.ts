// godwit sim mobility: handoff policies in a simulated world, in virtual time.
import { mkdir, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { GodwitError } from '../../wire/errors.ts'
import { mqttTarget } from '../client.ts'
import { command, shared } from '../command.ts'
import type { Io } from '../io.ts'
import { json } from '../output.ts'
import type { PublishOptions } from '../sim-publish.ts'

export const simCommands = [
  command({
    name: 'sim mobility',
    summary: 'simulate users who move, and what a handoff policy makes of it',
    details:
      'Users move over a map of sites and cells; each has a VM that may follow. Virtual time, seeded: the same scenario gives the same figures. ' +
      'Scenarios are YAML (see examples/mobility-*.yaml and docs/POLICY.md). Recorded drives are read from a folder of CSV files that you bring.',
    positionals: [{ name: 'SCENARIO', help: 'scenario file (YAML)' }],
    options: {
      policy: { kind: 'choice', choices: ['regret', 'latency', 'never', 'manual', 'follow-cell'], help: 'policy (default regret)' },
      compare: { kind: 'flag', help: 'all policies side by side' },
      hours: { kind: 'integer', value: 'N', min: 1, max: 10_000, help: 'simulated hours (default 1)' },
      'no-prestage': { kind: 'flag', help: 'send no memory ahead' },
      traces: { kind: 'path', value: 'DIR', help: 'folder of recorded drives, *.csv (GODWIT_TRACES)' },
      only: {
        kind: 'text',
        value: 'NAMES',
        help: 'users replay only these traces; comma-separated, * for anything (sites still stand along all)',
      },
      seed: { kind: 'integer', value: 'N', min: 0, max: 2 ** 31 - 1, help: "instead of the scenario's seed" },
      plot: {
        kind: 'path',
        value: 'FILE',
        help: 'write a picture of the figures (SVG); with --compare, default SCENARIO.svg in this folder',
      },
      record: { kind: 'path', value: 'DIR', help: 'write the ways of the first 200 users as replay files; not with --compare' },
      publish: {
        kind: 'text',
        value: 'URL',
        help: 'instead: in real time, publish over MQTT what a telco would measure of these users (user n has the VM vm-n); GODWIT_MQTT_USER, GODWIT_MQTT_PASSWORD_FILE, GODWIT_MQTT_TENANT',
      },
      json: shared.json,
    },
    examples: [
      'godwit sim mobility examples/mobility-border.yaml --compare --hours 4',
      'godwit sim mobility examples/mobility-traces.yaml --traces DIR --policy regret --hours 8 --json',
    ],
    run: async ({ options, args, io }) => {
      const [{ loadSimulation }, { compare, renderReports }, { simulate }, { comparisonSvg }, { Recorder }] = await Promise.all([
        import('../sim/load.ts'),
        import('../sim/compare.ts'),
        import('../sim/simulate.ts'),
        import('../sim/plot.ts'),
        import('../sim/record.ts'),
      ])
      if (options.compare && (options.policy || options.record))
        throw new GodwitError('USAGE', '--compare takes all policies, and records none')
      const recorder = options.record ? new Recorder() : undefined
      const folder = options.traces ?? io.env['GODWIT_TRACES']
      const { seed, only } = options
      const loaded = await loadSimulation(args[0]!, { folder, only, seed })
      const hours = options.hours ?? 1
      if (options.publish) return await publish({ ...loaded, hours }, options.publish, io)
      const settings = {
        ...(options.policy ? { policy: options.policy } : {}),
        ...(options['no-prestage'] ? { prestage: { isEnabled: false } } : {}),
      }
      const started = performance.now()
      const onHour = (hour: number) => {
        if (hour < hours && hour % Math.ceil(hours / 8) === 0) io.err(`${hour} of ${hours} h\n`)
      }
      const reports = options.compare
        ? compare({ ...loaded, hours, settings, onHour })
        : [simulate({ ...loaded, hours, settings, onHour, ...(recorder ? { onStep: ({ world }) => recorder.step(world) } : {}) })]
      io.err(`${hours} h took ${((performance.now() - started) / 1000).toFixed(1)} s\n`)
      const { name } = loaded.scenario
      const plot = options.plot ?? (options.compare ? `${name}.svg` : undefined)
      if (plot) await save(plot, comparisonSvg(`${name}, ${hours} h, seed ${loaded.scenario.seed}`, reports))
      for (const { name: file, text } of recorder?.files() ?? []) await save(join(options.record!, file), text)
      io.out(options.json ? json({ scenario: name, seed: loaded.scenario.seed, hours, reports }) : renderReports(reports))
      if (plot && !options.json) io.out(`picture: ${plot}\n`)
      return 0
    },
  }),
]

/** Until the hours are over, or Ctrl-C. */
async function publish(world: Pick<PublishOptions, 'scenario' | 'traces' | 'played' | 'hours'>, broker: string, io: Io): Promise<number> {
  const { publishScenario } = await import('../sim-publish.ts')
  const { target, tenant } = await mqttTarget(io, { broker })
  const stop = new AbortController()
  const off = io.onInterrupt(() => stop.abort())
  try {
    const sent = await publishScenario({ ...world, target, tenant, signal: stop.signal })
    io.out(`${sent} messages\n`)
    return 0
  } finally {
    off()
  }
}

async function save(path: string, text: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true }).catch(() => undefined)
  await writeFile(path, text).catch((cause: unknown) => {
    throw new GodwitError('CONFIG_UNREADABLE', `${path}: cannot be written`, { cause })
  })
}
