// The durable store: values, tables, batches, one process per folder, damage.
import { execFileSync } from 'node:child_process'
import { readdir, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { openStore } from '../../ops/store.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const test = suite('ops: store')

test('keeps values by table and key, also across closing', async () => {
  await using folder = await tempFolder()
  const path = join(folder.path, 'deep', 'store')
  const store = await openStore(path)
  await store.put('sites', 'a', { n: 1 }, { sync: true })
  await store.put('sites', 'b', [2])
  await store.put('sites-2', 'a', 'another table')
  await store.batch(
    [
      { type: 'put', table: 'sites', key: 'c', value: false },
      { type: 'delete', table: 'sites', key: 'b' },
    ],
    { sync: true },
  )
  await store.close()
  const again = await openStore(path)
  assert.equal(await again.get('sites', 'a'), { n: 1 })
  assert.is(await again.get('sites', 'nothing'), undefined)
  const all: unknown[] = []
  for await (const entry of again.entries('sites')) all.push(entry)
  assert.equal(all, [
    ['a', { n: 1 }],
    ['c', false],
  ])
  await again.delete('sites', 'a')
  assert.is(await again.get('sites', 'a'), undefined)
  await again.close()
})

test('a folder is one process: STORE_LOCKED', async () => {
  await using folder = await tempFolder()
  const store = await openStore(folder.path)
  assert.is(await codeOf(() => openStore(folder.path)), 'STORE_LOCKED')
  await store.close()
  await (await openStore(folder.path)).close()
})

test('who starts while an earlier process ends waits for it', async () => {
  await using folder = await tempFolder()
  const store = await openStore(folder.path)
  await store.put('t', 'k', 1, { sync: true })
  const later = openStore(folder.path, { lockedMs: 20_000 })
  assert.is(await codeOf(() => openStore(folder.path, { lockedMs: 150 })), 'STORE_LOCKED')
  await store.close()
  const again = await later
  assert.is(await again.get('t', 'k'), 1)
  await again.close()
})

test('a damaged folder is STORE_FAILED and says what to do; so is a closed store', async () => {
  await using folder = await tempFolder()
  const store = await openStore(folder.path)
  await store.put('t', 'k', 1, { sync: true })
  await store.close()
  assert.is(await codeOf(() => store.get('t', 'k')), 'STORE_FAILED')
  for (const name of await readdir(folder.path)) if (/^(MANIFEST|CURRENT)/.test(name)) await writeFile(join(folder.path, name), 'damage')
  const error = await thrown(() => openStore(folder.path))
  assert.ok(error instanceof GodwitError && error.code === 'STORE_FAILED')
  assert.match((error as GodwitError).hint, /move the folder and start again/)
})

test('a write that the disk takes in part takes nothing else along: what was synced after it is there at the next opening', async () => {
  await using folder = await tempFolder()
  const failures: string[] = []
  const store = await openStore(folder.path, { onBroken: ({ code }) => failures.push(code) })
  await store.put('t', 'before', 'x'.repeat(200), { sync: true })
  const logFile = (await readdir(folder.path)).find(name => name.endsWith('.log'))!
  const { size } = await stat(join(folder.path, logFile))
  // The signal would end us: Linux sends it beside EFBIG.
  const onSignal = () => {}
  process.on('SIGXFSZ', onSignal)
  limitFiles(`${size + 100}:unlimited`)
  const refused = await Promise.allSettled(['one', 'two', 'three'].map(key => store.put('t', key, 'y'.repeat(500), { sync: true })))
  const meanwhile = await codeOf(() => store.put('t', 'again', 'y'.repeat(500)))
  limitFiles('unlimited:unlimited')
  process.off('SIGXFSZ', onSignal)
  assert.equal(
    refused.map(({ status }) => status),
    ['rejected', 'rejected', 'rejected'],
  )
  assert.is(meanwhile, 'STORE_FAILED')
  assert.is(failures.length >= 2, true)
  for (const key of ['c', 'd', 'e']) await store.put('t', key, 'z'.repeat(300), { sync: true })
  assert.is(await store.get<string>('t', 'before'), 'x'.repeat(200))
  await store.close()
  const again = await openStore(folder.path)
  const keys: string[] = []
  for await (const [key] of again.entries('t')) keys.push(key)
  assert.equal(keys, ['before', 'c', 'd', 'e'])
  await again.close()
})

test('a store that was closed after a failed write stays closed', async () => {
  await using folder = await tempFolder()
  const store = await openStore(folder.path)
  const onSignal = () => {}
  process.on('SIGXFSZ', onSignal)
  limitFiles('0:unlimited')
  assert.is(await codeOf(() => store.put('t', 'k', 'x'.repeat(500), { sync: true })), 'STORE_FAILED')
  limitFiles('unlimited:unlimited')
  process.off('SIGXFSZ', onSignal)
  await store.close()
  assert.is(await codeOf(() => store.put('t', 'late', 1)), 'STORE_FAILED')
  // Its lock is free: the late write has not opened the folder again.
  await (await openStore(folder.path)).close()
})

/** RLIMIT_FSIZE of this process: every write to a file beyond it fails (setrlimit(2)). */
const limitFiles = (limits: string) => execFileSync('prlimit', ['--pid', String(process.pid), `--fsize=${limits}`])

test('a path that cannot be a folder is STORE_FAILED; names that are none are our own mistake', async () => {
  await using folder = await tempFolder()
  const file = join(folder.path, 'file')
  await writeFile(file, '')
  assert.is(await codeOf(() => openStore(join(file, 'below'))), 'STORE_FAILED')
  const store = await openStore(join(folder.path, 'store'))
  assert.ok((await thrown(() => store.put('a:b', 'k', 1))) instanceof TypeError)
  assert.ok((await thrown(() => store.put('t', '', 1))) instanceof TypeError)
  await store.close()
})

test.run()
