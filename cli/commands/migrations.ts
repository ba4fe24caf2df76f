// godwit migrations: what has moved and what moves, newest first, page by page.
import type { MigrationsPage } from '../../wire/admin.ts'
import { EXIT } from '../../wire/errors.ts'
import { askGateway } from '../client.ts'
import { command, gatewayOptions, shared } from '../command.ts'
import { json } from '../output.ts'
import { migrationTable } from '../status-view.ts'

export const migrations = command({
  name: 'migrations',
  summary: 'list migrations, newest first',
  details: 'Shows one page. If there are more, the cursor of the next page is on stderr (with --json: in `next`).',
  options: {
    vm: { kind: 'text', value: 'VM', help: 'only migrations of this VM' },
    state: {
      kind: 'text',
      value: 'STATES',
      help: 'only migrations in these states, comma-separated: INTENT, PREPARING, STREAMING, COMMIT_SEEN, DONE, ABORTED',
    },
    limit: { kind: 'integer', value: 'N', min: 1, max: 1000, help: 'maximum number of migrations (default 100)' },
    cursor: { kind: 'text', value: 'CURSOR', help: 'cursor of the next page' },
    json: shared.json,
    ...gatewayOptions,
  },
  examples: ['godwit migrations', 'godwit migrations --vm web-1 --limit 5', 'godwit migrations --state PREPARING,STREAMING --json'],
  run: async ({ options, io }) => {
    const { vm, state, limit, cursor } = options
    const wanted = Object.entries({ vm, state, limit, cursor }).flatMap(([name, value]) =>
      value === undefined ? [] : [`${name}=${encodeURIComponent(value)}`],
    )
    const page = await askGateway<MigrationsPage>(io, options, { path: `/v1/migrations${wanted.length > 0 ? `?${wanted.join('&')}` : ''}` })
    io.out(options.json ? json(page) : migrationTable(page.migrations, Date.now()))
    if (page.next && !options.json) io.err(`next page: --cursor ${page.next}\n`)
    return EXIT.ok
  },
})
