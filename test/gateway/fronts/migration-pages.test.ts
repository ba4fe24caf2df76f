// Pages of migrations: every one once, whatever begins or is dropped between two pages; filters; wrong parameters.
import { PAGE_DEFAULT, pageOf } from '../../../gateway/fronts/migration-pages.ts'
import { type MigrationRecord, type MigrationsPage, MigrationsQuery } from '../../../wire/admin.ts'
import { assert, suite } from '../../support/suite.ts'
import { TOKEN, vm, world } from '../fixture.ts'

const test = suite('gateway: pages of migrations', { ms: 15_000 })

const record = (n: number, more: Partial<MigrationRecord> = {}): MigrationRecord =>
  ({
    ...{ migrationId: n.toString(16).padStart(32, '0'), vm: `vm-${n % 3}`, state: n % 2 ? 'DONE' : 'STREAMING' },
    // Four in each millisecond.
    createdAt: 1000 + Math.floor(n / 4),
    ...more,
  }) as MigrationRecord
const records = (count: number) => Array.from({ length: count }, (_, n) => record(n))
const numbersOf = (page: { migrations: MigrationRecord[] }) => page.migrations.map(({ migrationId }) => Number.parseInt(migrationId, 16))

test('all pages together are all migrations, newest first, at every size of a page', () => {
  const all = records(25)
  const expected = Array.from({ length: 25 }, (_, i) => 24 - i)
  for (let limit = 1; limit <= 26; limit++) {
    const seen: number[] = []
    for (let cursor: string | null | undefined; cursor !== null; ) {
      const page = pageOf(
        [...all].sort(() => Math.sign(limit % 3) - 1),
        { limit, ...(cursor === undefined ? {} : { cursor }) },
      )
      assert.ok(page.migrations.length <= limit && page.migrations.length > 0)
      seen.push(...numbersOf(page))
      cursor = page.next
    }
    assert.equal(seen, expected, `${limit} on a page`)
  }
  assert.is(pageOf(records(PAGE_DEFAULT + 1), {}).migrations.length, PAGE_DEFAULT)
  assert.equal(pageOf([], {}), { migrations: [], next: null })
})

test('a migration that begins or is dropped between two pages moves no other one', () => {
  const all = records(12)
  const first = pageOf(all, { limit: 4 })
  const changed = [...all.filter(({ migrationId }) => migrationId !== first.migrations.at(-1)!.migrationId), record(99)]
  assert.equal(numbersOf(pageOf(changed, { limit: 4, cursor: first.next! })), [7, 6, 5, 4])
})

test('only those of a VM and in given states', () => {
  assert.equal(numbersOf(pageOf(records(12), { vm: 'vm-1' })), [10, 7, 4, 1])
  assert.equal(numbersOf(pageOf(records(12), { vm: 'vm-1', state: ['DONE'] })), [7, 1])
  const page = pageOf(records(12), { state: ['STREAMING', 'INTENT'], limit: 2 })
  assert.equal(numbersOf(page), [10, 8])
  assert.equal(numbersOf(pageOf(records(12), { state: ['STREAMING'], limit: 2, cursor: page.next! })), [6, 4])
})

test('parameters are checked, and a wrong one is named', async () => {
  assert.equal(MigrationsQuery.parse({ limit: '7', state: 'DONE,ABORTED', vm: 'x' }), { limit: 7, state: ['DONE', 'ABORTED'], vm: 'x' })
  await using w = await world()
  const wrong = ['limit=0', 'limit=1001', 'limit=x', 'limit=1.5', 'cursor=1', 'cursor=', 'vm=UPPER', 'state=done', 'state=DONE,', 'page=2']
  for (const query of wrong) {
    const answer = await fetch(`${w.gateway.adminUrl}/v1/migrations?${query}`, { headers: { authorization: `Bearer ${TOKEN}` } })
    const { code, message } = (await answer.json()) as { code: string; message: string }
    assert.equal([answer.status, code], [400, 'CONFIG_INVALID'], query)
    assert.match(message, query.split('=')[0]!, query)
  }
})

test('the API gives pages of what a gateway has done', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [1, 2, 3].map(n => vm(`vm-${n}`)) })
  await w.node('b')
  a.handlers.start = async () => {
    throw new Error('no')
  }
  for (const n of [1, 2, 3]) {
    const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: `vm-${n}`, to: 'b' })
    await w.until(migrationId, ({ outcome }) => outcome === 'failed')
  }
  const page = (query: string) => w.api<MigrationsPage>('GET', `/v1/migrations${query}`)
  const vmsOf = ({ migrations }: MigrationsPage) => migrations.map(record => record.vm)
  const first = await page('?limit=2')
  assert.equal(vmsOf(first), ['vm-3', 'vm-2'])
  const second = await page(`?limit=2&cursor=${first.next}`)
  assert.equal([vmsOf(second), second.next], [['vm-1'], null])
  assert.equal(vmsOf(await page('?vm=vm-2&state=ABORTED')), ['vm-2'])
  assert.equal(vmsOf(await page('?state=INTENT,DONE')), [])
})

test.run()
