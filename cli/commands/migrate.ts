// godwit migrate: requests a migration from the gateway, shows its progress, and ends with its report. The first Ctrl-C
// asks the gateway to cancel and waits for the outcome (after the commit it is too late, and the VM runs at the
// target). The second Ctrl-C exits; the migration, or its cancellation, continues without this command.
import type { MigrationRecord } from '../../wire/admin.ts'
import { EXIT, fromBody, GodwitError, toGodwitError } from '../../wire/errors.ts'
import { askGateway, gatewayTarget } from '../client.ts'
import { command, gatewayOptions, shared } from '../command.ts'
import type { ClientFlags } from '../config.ts'
import type { Io } from '../io.ts'
import { json, showError } from '../output.ts'
import { createProgress } from '../progress.ts'
import { renderReport } from '../report.ts'
import type { WantedMove } from '../signed-move.ts'

export const migrate = command({
  name: 'migrate',
  summary: 'move a VM to another site',
  details:
    'live: pre-copy; the VM keeps running and pauses only for the hand-over. cold: stop, copy, start; works with every QEMU and accelerator. ' +
    'The default method is live. A VM that is stopped moves with --method cold: its disks travel, and it stays stopped.\n\n' +
    'Ctrl-C cancels the migration and waits for the outcome; a second Ctrl-C exits without waiting (exit code 7).',
  positionals: [{ name: 'VM', help: 'name of the VM (see godwit status)' }],
  options: {
    to: { kind: 'text', value: 'SITE', help: 'target site', required: true },
    method: { kind: 'choice', choices: ['live', 'cold'], help: 'migration method (default live)' },
    downtime: { kind: 'duration', value: 'TIME', help: 'longest acceptable downtime (default 300ms)' },
    start: { kind: 'flag', help: 'start a VM that is stopped at the target (default: it stays stopped)' },
    streams: { kind: 'integer', value: 'N', min: 1, max: 128, help: 'parallel page streams (default 4)' },
    key: {
      kind: 'path',
      value: 'FILE',
      help: 'sign the migration with this key (godwit mqtt keygen), for sources that require a signed command',
    },
    tenant: { kind: 'text', value: 'NAME', help: 'tenant of the signature by --key (GODWIT_MQTT_TENANT; default main)' },
    detach: { kind: 'flag', help: 'start the migration, print its id, and do not wait' },
    json: shared.json,
    ...gatewayOptions,
  },
  examples: [
    'godwit migrate web-1 --to hamburg-1',
    'godwit migrate web-1 --to hamburg-1 --method cold --json',
    'godwit migrate stopped-1 --to hamburg-1 --method cold --start',
    'godwit migrate web-1 --to hamburg-1 --key noc-1.key',
  ],
  run: async ({ options, args, io }) => {
    const move = {
      vm: args[0]!,
      to: options.to,
      method: options.method,
      downtimeMs: wholeMs(options.downtime),
      ...(options.start ? { start: true } : {}),
    }
    const body = { ...move, streams: options.streams, ...(await signature(io, options, move)) }
    const { migrationId } = await askGateway<{ migrationId: string }>(io, options, { method: 'POST', path: '/v1/migrations', body })
    if (options.detach) {
      io.out(options.json ? json({ migrationId }) : `${migrationId}\n`)
      return EXIT.ok
    }
    const progress = createProgress(io, () => performance.now(), options.json)
    progress.note(`migration ${migrationId}: ${args[0]} -> ${options.to}`)
    const leave = new AbortController()
    const stopListening = io.onInterrupt(count => {
      if (count > 1)
        return leave.abort(
          new GodwitError('MIGRATION_CANCELLED', `stopped waiting; migration ${migrationId} may still be running`, {
            hint: 'see godwit status',
          }),
        )
      progress.note('cancelling; press Ctrl-C again to exit without waiting')
      askGateway(io, options, { method: 'DELETE', path: `/v1/migrations/${migrationId}` }).catch(error =>
        progress.note(`cancelling failed: ${toGodwitError(error).message}`),
      )
    })
    try {
      const { followMigration } = await import('../follow.ts')
      const target = await gatewayTarget(io, options)
      const record = await followMigration({
        target,
        migrationId,
        signal: leave.signal,
        onProgress: progress.update,
        onNote: progress.note,
      })
      progress.finish()
      return showOutcome(io, record, options.json)
    } finally {
      progress.finish()
      stopListening()
    }
  },
})

/** The signed command for the request, if a key is given. */
async function signature(io: Io, options: ClientFlags & { key?: string | undefined; tenant?: string | undefined }, move: WantedMove) {
  const { key } = options
  if (key === undefined) return {}
  const { signMove } = await import('../signed-move.ts')
  return { command: await signMove(io, { ...options, key }, move) }
}

function wholeMs(ms: number | undefined): number | undefined {
  if (ms === undefined) return undefined
  if (!(ms >= 1 && ms <= 3_600_000)) throw new GodwitError('USAGE', '--downtime must be from 1ms to 1h')
  return Math.round(ms)
}

/** Prints the report or the error of an ended migration; returns the exit code. */
function showOutcome(io: Io, { outcome, report, error, migrationId }: MigrationRecord, wantsJson: boolean): number {
  if (outcome === 'completed') {
    if (report) io.out(wantsJson ? json(report) : renderReport(report))
    else io.out(wantsJson ? json({ migrationId, outcome }) : `migration ${migrationId} completed; the gateway has no report\n`)
    return EXIT.ok
  }
  if (report && !wantsJson) io.err(renderReport(report))
  const fallback = outcome === 'cancelled' ? 'MIGRATION_CANCELLED' : 'MIGRATION_FAILED'
  const thrown = error ? fromBody(error) : new GodwitError(fallback)
  const code = showError(io, thrown, wantsJson)
  return outcome === 'cancelled' ? EXIT.cancelled : code
}
