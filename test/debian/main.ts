// npm run test:debian: a whole Debian 12 with PostgreSQL under load migrates live, then cold. Enters: the guest that
// scripts/setup.js --debian-guest builds. Leaves: figures of both migrations. Always holds: the programs of the guest
// decide whether its disk is whole: pg_amcheck, sha256sum, and e2fsck from outside.

import { spawnSync } from 'node:child_process'
import type { MigrationRecord, MigrationRequest } from '../../wire/admin.ts'
import { MINUTE_MS } from '../../wire/units.ts'
import { bootDebian, type DebianGuest, debianGuestMissing } from '../support/debian-guest.ts'
import { beginSoon } from '../support/disk-scene.ts'
import { type Lab, labMissing, openLab } from '../support/lab.ts'
import { assert, suite } from '../support/suite.ts'

const MIGRATION_MS = 8 * MINUTE_MS
const test = suite('debian', { ms: 30 * MINUTE_MS })
const skip = labMissing() ?? debianGuestMissing() ?? (spawnSync('qemu-nbd', ['--version']).status !== 0 && 'qemu-utils is not installed')
const FILE = '/var/tmp/file'
const FILE_BYTES = 50_000_000

const print = (what: string, figures: unknown) => console.log(`  ${what}: ${JSON.stringify(figures)}`)

async function move(lab: Lab, guest: DebianGuest, request: Omit<MigrationRequest, 'vm'>): Promise<void> {
  const record = await lab.until(await beginSoon(lab, { vm: guest.name, ...request }), undefined, MIGRATION_MS)
  assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
  print(`${request.method} migration`, figuresOf(record))
  const { bytesFromDisk = 0, bytesCompressed } = record.report!
  assert.ok(bytesFromDisk > bytesCompressed / 2, 'much of what such a guest has in its memory is on its disk')
  assert.is(await guest.site(), request.to)
}

async function checkAll(guest: DebianGuest, sum: string): Promise<void> {
  await guest.checkKernel()
  await guest.checkTables()
  assert.is(await guest.checksum(FILE), sum)
  await guest.shutDownAndCheckDisk()
}

function figuresOf({ report }: MigrationRecord) {
  const { totalMs, downtimeMs, downtimeParts, disks, wireBytes, notes } = report!
  const { guestBytes, rounds, bytesFromDisk, bytesCompressed } = report!
  return { totalMs, downtimeMs, downtimeParts, disks, memory: { guestBytes, rounds, bytesFromDisk, bytesCompressed }, wireBytes, notes }
}

test(
  'Debian with PostgreSQL under load moves live and cold: no transaction fails, and tables, files and file system are whole',
  async () => {
    await using lab = await openLab({ sites: ['a', 'b'] })
    const began = performance.now()
    const guest = await bootDebian(lab, 'a')
    print('boot', { ms: Math.round(performance.now() - began) })
    await guest.must(`head -c ${FILE_BYTES} /dev/urandom > ${FILE}`)
    const sum = await guest.checksum(FILE)
    await guest.initBench()
    await guest.startBench()

    await move(lab, guest, { to: 'b', method: 'live' })
    const bench = await guest.stopBench()
    print('pgbench', bench)
    assert.is(bench.failed, 0)
    assert.ok(bench.transactions > 0)
    await checkAll(guest, sum)

    await guest.start('b')
    await guest.startBench()
    await move(lab, guest, { to: 'a', method: 'cold' })
    assert.is((await guest.stopBench()).failed, 0)
    await checkAll(guest, sum)
  },
  { skip },
)

test.run()
