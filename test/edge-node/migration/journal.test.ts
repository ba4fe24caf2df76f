// The ownership journal with plans of a later release: what this release does not know stays, since it is signed.
import { generateSiteKeys, loadSodium } from '../../../crypto/identity.ts'
import { createJournal } from '../../../edge-node/migration/journal.ts'
import { openStore } from '../../../ops/store.ts'
import { Plan } from '../../../wire/control.ts'
import { silentLog } from '../../../wire/log.ts'
import { check } from '../../../wire/schema.ts'
import { assert, suite } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'

await loadSodium()
const test = suite('ownership journal')

test('a record whose plan has fields of a later release is read as it was written', async () => {
  await using folder = await tempFolder()
  const store = await openStore(folder.path)
  const journal = createJournal({ store, keys: generateSiteKeys(), now: () => 1, log: silentLog })
  const plan = check(
    Plan,
    {
      ...{ version: 1, migrationId: '0'.repeat(32), vm: 'vm-1', epoch: 1, source: 'a', target: 'b', method: 'live', downtimeMs: 300 },
      ...{ streams: 4, attempt: 1, compression: 'zstd', createdAt: 1, later: { nested: [1] } },
    },
    { what: 'plan' },
  )
  await journal.recorder(plan, 'source', new Uint8Array(8))('OFFERED', 1)
  const [last] = await journal.last()
  assert.equal(last?.plan, plan)
  assert.is(journal.isAltered, false)
  await store.close()
})

test.run()
