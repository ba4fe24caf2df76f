// godwit migrate: asks the gateway for a migration, shows its progress, ends with its report.
// Ctrl-C asks the gateway to cancel and waits for what comes of it (after the commit it is too late, and the VM runs at the target);
// a second one leaves: the migration goes on, or is being cancelled, without us.
import type { MigrationRecord } from '../../wire/admin.ts'
import { EXIT, fromBody, GodwitError, toGodwitError } from '../../wire/errors.ts'
import { askGateway, gatewayTarget } from '../client.ts'
import { command, shared } from '../command.ts'
import type { Io } from '../io.ts'
import { json, showError } from '../output.ts'
import { createProgress } from '../progress.ts'
import { renderReport } from '../report.ts'

export const migrate = command({
  name: 'migrate',
  summary: 'move a VM to another site',
  details:
    'live: pre-copy; the VM goes on running and pauses only for the hand-over. cold: stop, copy, start; works with every QEMU and accelerator. ' +
    'Without --method the gateway asks for live.\n\n' +
    'Ctrl-C cancels and waits for the outcome; a second Ctrl-C leaves without waiting (exit code 7).',
  positionals: [{ name: 'VM', help: 'name of the VM (see godwit status)' }],
  options: {
    to: { kind: 'text', value: 'SITE', help: 'where it shall run', required: true },
    method: { kind: 'choice', choices: ['live', 'cold'], help: 'how (default live)' },
    downtime: { kind: 'duration', value: 'TIME', help: 'the longest pause that is acceptable (default 300ms)' },
    streams: { kind: 'integer', value: 'N', min: 1, max: 128, help: 'parallel page streams (default 4)' },
    detach: { kind: 'flag', help: 'only start it: print the migration id and do not wait' },
    json: shared.json,
    gateway: shared.gateway,
    'token-file': shared.tokenFile,
  },
  examples: ['godwit migrate web-1 --to hamburg-1', 'godwit migrate web-1 --to hamburg-1 --method cold --json'],
  run: async ({ options, args, io }) => {
    const body = { vm: args[0]!, to: options.to, method: options.method, downtimeMs: wholeMs(options.downtime), streams: options.streams }
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
          new GodwitError('MIGRATION_CANCELLED', `left; migration ${migrationId} may still be under way`, { hint: 'see godwit status' }),
        )
      progress.note('cancelling; once more to leave without waiting')
      askGateway(io, options, { method: 'DELETE', path: `/v1/migrations/${migrationId}` }).catch(error =>
        progress.note(`not cancelled: ${toGodwitError(error).message}`),
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

function wholeMs(ms: number | undefined): number | undefined {
  if (ms === undefined) return undefined
  if (!(ms >= 1 && ms <= 3_600_000)) throw new GodwitError('USAGE', '--downtime must be from 1ms to 1h')
  return Math.round(ms)
}

/** Prints the report, or the error, of an ended migration; gives the exit code. */
export function showOutcome(io: Io, { outcome, report, error, migrationId }: MigrationRecord, wantsJson: boolean): number {
  if (outcome === 'completed') {
    if (report) io.out(wantsJson ? json(report) : renderReport(report))
    else io.out(wantsJson ? json({ migrationId, outcome }) : `migration ${migrationId} completed; no report came\n`)
    return EXIT.ok
  }
  if (report && !wantsJson) io.err(renderReport(report))
  const fallback = outcome === 'cancelled' ? 'MIGRATION_CANCELLED' : 'MIGRATION_FAILED'
  const thrown = error ? fromBody(error) : new GodwitError(fallback)
  const code = showError(io, thrown, wantsJson)
  return outcome === 'cancelled' ? EXIT.cancelled : code
}
