import { existsSync } from 'node:fs'
import { chmod, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { openRegistry } from '../../../edge-node/registry/registry.ts'
import { eventually, within } from '../../../ops/deadline.ts'
import { openStore } from '../../../ops/store.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { echoSpec, testSite } from '../vm/echo-guest.ts'
import { open, skip } from './open-registry.ts'

const test = suite('edge-node/registry/registry', { ms: 60_000 })

test('a second agent is refused the state folder', async () => {
  await using site = await testSite()
  await using _registry = await open(site)
  assert.is(await codeOf(() => openRegistry(site)), 'STORE_LOCKED')
})

test('a QEMU that takes its time to be measured does not keep the registry from closing, and goes with it', async () => {
  await using site = await testSite()
  const [slow, pidFile] = [join(site.dir, 'slow-qemu'), join(site.dir, 'pid')]
  await writeFile(
    slow,
    `#!/bin/sh\n[ "$1" = --version ] && exec echo "QEMU emulator version 10.0.2"\necho $$ > ${pidFile}\nexec sleep 60\n`,
  )
  await chmod(slow, 0o755)
  {
    // Creating asks QEMU as well: here one that is not there, which is known at once.
    await using first = await open(site, { qemuBinary: 'qemu-system-that-nobody-has' })
    await first.create(echoSpec('vm-1'))
    await rm(join(site.stateDir, 'qemu-abilities.json'), { force: true })
  }
  const registry = await openRegistry({ stateDir: site.stateDir, imagesDir: site.imagesDir, qemuBinary: slow })
  const [start, info] = [codeOf(() => registry.start('vm-1')), registry.hostInfo()]
  const pid = await eventually(async () => Number(await readFile(pidFile, 'utf8').catch(() => '')) || undefined, {
    ms: 10_000,
    what: 'the measurement',
  })
  // Measuring emulation alone may take 10 s, and KVM after it.
  await within(registry.close(), { ms: 6_000, what: 'closing' })
  assert.is(await start, 'SITE_OFFLINE')
  assert.equal((await info).accelerators, [])
  await eventually(() => (existsSync(`/proc/${pid}`) ? undefined : true), { ms: 5_000, what: 'the end of the QEMU' })
})

test(
  'the store may be given, and then stays open',
  async () => {
    await using site = await testSite()
    const store = await openStore(join(site.dir, 'store'))
    try {
      const registry = await openRegistry({ ...site, store })
      await registry.create(echoSpec('vm-1'))
      await registry.close()
      assert.ok(await store.get('vms', 'vm-1'))
    } finally {
      await store.close()
    }
  },
  { skip },
)

test.run()
