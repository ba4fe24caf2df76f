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
    summary: 'simulate a handoff policy with moving users',
    details:
      'Users move over a map of sites and cells; each user has a VM that may follow. Time is virtual and seeded: the same scenario gives the same results. ' +
      'Scenarios are YAML (see examples/mobility-*.yaml and docs/operate/policy.md). Recorded drives are CSV files in a folder of yours.',
    positionals: [{ name: 'SCENARIO', help: 'scenario file (YAML)' }],
    options: {
      policy: {
        kind: 'choice',
        choices: ['regret', 'latency', 'never', 'manual', 'follow-cell'],
        help: 'policy to simulate (default regret)',
      },
      compare: { kind: 'flag', help: 'compare all policies' },
      hours: { kind: 'integer', value: 'N', min: 1, max: 10_000, help: 'simulated hours (default 1)' },
      'no-prestage': { kind: 'flag', help: 'turn pre-staging off' },
      traces: { kind: 'path', value: 'DIR', help: 'folder of recorded drives, *.csv (GODWIT_TRACES)' },
      only: {
        kind: 'text',
        value: 'NAMES',
        help: 'users replay only these traces; comma-separated, * matches anything (sites still cover all traces)',
      },
      seed: { kind: 'integer', value: 'N', min: 0, max: 2 ** 31 - 1, help: "seed that replaces the scenario's" },
      plot: {
        kind: 'path',
        value: 'FILE',
        help: 'write a chart of the results (SVG); with --compare the default is SCENARIO.svg in the current folder',
      },
      record: { kind: 'path', value: 'DIR', help: 'write the routes of the first 200 users as replay files; not with --compare' },
      publish: {
        kind: 'text',
        value: 'URL',
        help: 'do not simulate the policy: publish the measurements of these users over MQTT in real time (user n has the VM vm-n); uses GODWIT_MQTT_USER, GODWIT_MQTT_PASSWORD_FILE, GODWIT_MQTT_TENANT',
      },
      key: {
        kind: 'path',
        value: 'FILE',
        help: 'with --publish: sign the measurements with this key (godwit mqtt keygen --for measurement)',
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
        throw new GodwitError('USAGE', '--compare runs all policies: it excludes --policy and --record')
      const recorder = options.record ? new Recorder() : undefined
      const folder = options.traces ?? io.env['GODWIT_TRACES']
      const { seed, only } = options
      const loaded = await loadSimulation(args[0]!, { folder, only, seed })
      const hours = options.hours ?? 1
      if (options.key && !options.publish) throw new GodwitError('USAGE', '--key needs --publish: only published measurements are signed')
      if (options.publish) return await publish({ ...loaded, hours }, options.publish, options.key, io)
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

/** Runs until the simulated hours are over, or until Ctrl-C. */
async function publish(
  world: Pick<PublishOptions, 'scenario' | 'traces' | 'played' | 'hours'>,
  broker: string,
  keyFile: string | undefined,
  io: Io,
): Promise<number> {
  const { publishScenario } = await import('../sim-publish.ts')
  const key = keyFile === undefined ? undefined : await measurementKey(keyFile)
  const { target, tenant } = await mqttTarget(io, { broker })
  const stop = new AbortController()
  const off = io.onInterrupt(() => stop.abort())
  try {
    const sent = await publishScenario({ ...world, target, tenant, key, signal: stop.signal })
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

async function measurementKey(file: string) {
  const [{ decodeCommandKey }, { readSecret }] = await Promise.all([import('../../crypto/command-keys.ts'), import('../../ops/files.ts')])
  return decodeCommandKey(await readSecret(file), file, 'measurement')
}
