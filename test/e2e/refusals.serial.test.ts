// Every wrong request gets its coded error, and costs nothing: the VM goes on at its site, beating, the target has
// nothing left, the gateway's record says ABORTED with that code. One lab, one running guest for all of it, and in the
// end the guest's audit and a migration that works.

import { chmod, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from '../../cli/run.ts'
import { createRoot } from '../../crypto/certificate.ts'
import { connectLink } from '../../edge-node/link/link.ts'
import { nowSeconds } from '../../ops/clock.ts'
import { eventually } from '../../ops/deadline.ts'
import type { MigrationRequest } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { recordingIo } from '../cli/recording-io.ts'
import { echoDisk } from '../edge-node/vm/echo-guest.ts'
import { identityOf, NOW_SECONDS } from '../gateway/fixture.ts'
import { GATEWAY_ID, type Lab, labMissing, openLab } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { shared } from '../support/shared.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'

const test = suite('e2e/refusals', { ms: 60_000 })
const skip = labMissing()
const VM = 'vm-1'
const MACHINE = 'pc-i440fx-9.0'

const scene = shared(async () => {
  const lab = await openLab()
  try {
    const guest = await bootGuest(lab, 'a', { name: VM, seed: 9 })
    const dispose = async () => {
      guest[Symbol.dispose]()
      await lab[Symbol.asyncDispose]()
    }
    return { lab, guest, [Symbol.asyncDispose]: dispose }
  } catch (error) {
    await lab[Symbol.asyncDispose]()
    throw error
  }
})

/** No VM in the site's list, and no folder of one. */
async function isEmpty(lab: Lab, name: string): Promise<true | undefined> {
  const { dir, node } = lab.site(name)
  const folders = await readdir(join(dir, 'state', 'vms'))
  return node.registry.list().length === 0 && folders.length === 0 ? true : undefined
}

/** Nothing happened to the VM, and nothing of it is at the target. */
async function assertUntouched(to?: string, vm = VM): Promise<void> {
  const { lab, guest } = await scene()
  const here = lab.site('a').node.registry.get(vm)
  assert.is(here.state, 'running')
  assert.is((await lab.site('a').node.registry.machine(vm).commands.queryStatus()).status, 'running')
  // The source's word ends a migration; the target clears up at the same time.
  if (to !== undefined) await eventually(() => isEmpty(lab, to), { ms: 30_000, what: `nothing left at ${to}` })
  await guest.observer.next('beat', 5_000)
}

/** Refused by the gateway before anything is written down. */
async function assertRefused(code: string, request: Partial<MigrationRequest>): Promise<void> {
  const { lab } = await scene()
  const before = (await lab.api<{ migrations: unknown[] }>('GET', '/v1/migrations')).migrations.length
  assert.is(await codeOf(() => lab.begin({ vm: VM, to: 'b', ...request })), code)
  assert.is((await lab.api<{ migrations: unknown[] }>('GET', '/v1/migrations')).migrations.length, before, 'no record of it')
  await assertUntouched()
}

/** Begun, refused by a site, and over. */
async function assertAborted(code: string, to: string, vm = VM): Promise<string> {
  const { lab } = await scene()
  const { state, outcome, error } = await lab.migrate({ vm, to })
  assert.equal({ state, outcome, code: error?.code }, { state: 'ABORTED', outcome: 'failed', code }, lab.logTail())
  assert.ok((error?.hint ?? '') !== '', 'it says what to do')
  await assertUntouched(to, vm)
  return error?.message ?? ''
}

const addSite = async (...[name, options]: Parameters<Lab['addSite']>) => {
  const { lab } = await scene()
  return await lab.addSite(name, options)
}

test(
  'an unknown VM, an unknown site, and the site where the VM is already are refused',
  async () => {
    await assertRefused('VM_UNKNOWN', { vm: 'nobody' })
    await assertRefused('SITE_UNKNOWN', { to: 'nowhere' })
    await assertRefused('SITE_SAME', { to: 'a' })
  },
  { skip },
)

test(
  'a target that is offline is refused',
  async () => {
    const gone = await addSite('gone')
    await gone.stop()
    const { lab } = await scene()
    await eventually(async () => ((await codeOf(() => lab.begin({ vm: VM, to: 'gone' }))) === 'SITE_OFFLINE' ? true : undefined), {
      ms: 30_000,
      what: 'SITE_OFFLINE',
    })
    await assertUntouched()
  },
  { skip },
)

test(
  'a VM that is there already by that name is refused',
  async () => {
    const { lab } = await scene()
    const spec = `name: ${VM}\nmemory: 16MiB\nkernel: vmlinuz\n`
    await lab.site('b').api('POST', '/v1/vms', { spec })
    await eventually(async () => ((await lab.api<{ vms: unknown[] }>('GET', '/v1/vms')).vms.length === 2 ? true : undefined), {
      ms: 30_000,
      what: 'both VMs known',
    })
    await assertRefused('VM_EXISTS', { to: 'b' })
    await lab.site('b').api('DELETE', `/v1/vms/${VM}`)
    await eventually(async () => ((await lab.api<{ vms: unknown[] }>('GET', '/v1/vms')).vms.length === 1 ? true : undefined), {
      ms: 30_000,
      what: 'one VM known',
    })
  },
  { skip },
)

test(
  'a target without the memory for it refuses it',
  async () => {
    await addSite('full', { memoryReserve: '1024GiB' })
    assert.match(await assertAborted('PREFLIGHT_MEMORY', 'full'), /256MiB.* 0B are free/)
  },
  { skip },
)

test(
  'a target whose QEMU does not know the machine type refuses it and names the type',
  async () => {
    await addSite('other-machines', { machines: known => known.filter(name => name !== MACHINE) })
    assert.match(await assertAborted('PREFLIGHT_MACHINE', 'other-machines'), MACHINE)
  },
  { skip },
)

test(
  'a target without the kernel, or with another kernel of that name, refuses it and names the file',
  async () => {
    const bare = await addSite('bare', { isEmpty: true })
    assert.match(await assertAborted('PREFLIGHT_FILE_MISSING', 'bare'), 'vmlinuz')
    await writeFile(join(bare.imagesDir, 'vmlinuz'), 'another')
    assert.match(await assertAborted('PREFLIGHT_FILE_MISSING', 'bare'), /vmlinuz.*differs from the file/)
  },
  { skip },
)

test(
  'a target without QEMU, or with one too old, refuses it',
  async () => {
    const { lab } = await scene()
    await addSite('no-qemu', { qemuBinary: '/nonexistent/qemu-system-x86_64' })
    await assertAborted('PREFLIGHT_QEMU_MISSING', 'no-qemu')
    const old = join(lab.dir, 'qemu-6.2')
    await writeFile(old, '#!/bin/sh\necho "QEMU emulator version 6.2.0"\n')
    await chmod(old, 0o755)
    await addSite('old-qemu', { qemuBinary: old })
    assert.match(await assertAborted('PREFLIGHT_QEMU_OLD', 'old-qemu'), '6.2.0')
  },
  { skip },
)

test(
  'a VM that writes to a local disk is refused',
  async () => {
    const { lab } = await scene()
    for (const site of ['a', 'b']) await writeFile(join(lab.site(site).imagesDir, 'echo.img'), echoDisk())
    const spec = 'name: scribe\nmemory: 32MiB\ndisks:\n  - {file: echo.img, mode: writable, format: raw}\n'
    await lab.site('a').api('POST', '/v1/vms', { spec })
    await lab.site('a').api('POST', '/v1/vms/scribe/start', {})
    const isKnown = async () =>
      (await lab.api<{ vms: { name: string; state: string }[] }>('GET', '/v1/vms')).vms.some(
        vm => vm.name === 'scribe' && vm.state === 'running',
      )
        ? true
        : undefined
    await eventually(isKnown, { ms: 30_000, what: 'scribe known to run' })
    assert.match(await assertAborted('PREFLIGHT_WRITABLE_DISK', 'b', 'scribe'), 'echo.img')
    await lab.site('a').api('POST', '/v1/vms/scribe/stop', { force: true })
    await lab.site('a').api('DELETE', '/v1/vms/scribe')
  },
  { skip },
)

test(
  'a target that has seen a later owner of this name refuses the plan as stale',
  async () => {
    const stale = await addSite('stale')
    for (let epoch = 1; epoch <= 2; epoch++) {
      await stale.api('POST', '/v1/vms', { spec: `name: ${VM}\nmemory: 16MiB\nkernel: vmlinuz\n` })
      await stale.api('DELETE', `/v1/vms/${VM}`)
    }
    const { lab } = await scene()
    const isAlone = async () => ((await lab.api<{ vms: unknown[] }>('GET', '/v1/vms')).vms.length === 1 ? true : undefined)
    await eventually(isAlone, { ms: 30_000, what: 'one VM known' })
    assert.match(await assertAborted('EPOCH_STALE', 'stale'), /the source offers epoch 2, but this site has seen epoch 2/)
  },
  { skip },
)

test(
  'a VM that is migrating is not migrated a second time',
  async () => {
    const { lab } = await scene()
    lab.valve.hold(index => index >= 2)
    const first = await lab.begin({ vm: VM, to: 'b' })
    await lab.valve.reached()
    const error = await thrown(() => lab.begin({ vm: VM, to: 'b' }))
    assert.ok(error instanceof GodwitError && error.code === 'MIGRATION_BUSY' && error.message.includes(first), String(error))
    await lab.api('DELETE', `/v1/migrations/${first}`)
    lab.valve.open()
    assert.is((await lab.until(first)).outcome, 'cancelled')
    await assertUntouched('b')
  },
  { skip },
)

test(
  'a malformed specification names the field and its line, and makes no VM',
  async () => {
    const { lab } = await scene()
    const bad: [text: string, what: RegExp][] = [
      ['name: x\nmemory: 12\nkernel: vmlinuz\n', /memory \(line 2\): must be a size/],
      ['name: x\nmemory: 16MiB\nkernel: ../etc/passwd\n', /kernel \(line 3\)/],
      ['name: x\nmemory: 16MiB\nkernel: vmlinuz\nmemroy: 1GiB\n', /memroy \(line 4\): unknown field; allowed are/],
      ['name: x\nmemory: [16MiB\n', /malformed YAML at line [23]/],
    ]
    for (const [spec, what] of bad) {
      const error = await thrown(() => lab.site('a').api('POST', '/v1/vms', { spec }))
      assert.ok(error instanceof GodwitError && error.code === 'VM_SPEC_INVALID', String(error))
      assert.match(error.message, what)
    }
    assert.equal(
      lab
        .site('a')
        .node.registry.list()
        .map(({ name }) => name),
      [VM],
    )
  },
  { skip },
)

test(
  'a request without the right token, or with an unknown field, is refused',
  async () => {
    const { lab } = await scene()
    const body = { vm: VM, to: 'b' }
    for (const token of ['wrong', 'x'.repeat(64)])
      assert.is(await codeOf(() => lab.api('POST', '/v1/migrations', body, { token })), 'TOKEN_INVALID')
    // No token is no header of its own: the client refuses to send it.
    assert.is(await codeOf(() => lab.api('POST', '/v1/migrations', body, { token: '' })), 'USAGE')
    const error = await thrown(() => lab.api('POST', '/v1/migrations', { ...body, downtime: 5 }))
    assert.ok(error instanceof GodwitError && error.code === 'CONFIG_INVALID' && error.message.includes('downtime'), String(error))
    await assertUntouched('b')
  },
  { skip },
)

test(
  'a site that another root has certified does not start, and the gateway lets it in as little',
  async () => {
    const { lab } = await scene()
    const other = createRoot()
    assert.is(await codeOf(() => lab.addSite('foreign', { certifiedBy: other })), 'CERT_UNTRUSTED')
    // An agent that does not look at its own certificate comes no further.
    const { engine, port } = lab.door
    const link = connectLink({
      dial: async ({ signal }) => ({
        connection: await engine.connect({ host: '127.0.0.1', port, signal }),
        selection: { engine: 'memory', tried: [] },
      }),
      identity: identityOf(other, 'site', 'foreign'),
      rootPublic: lab.root.signPublic,
      site: 'foreign',
      gatewayId: GATEWAY_ID,
      version: 'test',
      describe: async () => ({ host: { accelerators: [], memoryFreeBytes: 0, diskFreeBytes: 0, vcpus: 1 }, vms: [], migrations: [] }),
      handlers: { prepare: async () => {}, start: async () => {}, cancel: async () => {} },
      onRelayStream: () => {},
      log: silentLog,
    })
    try {
      assert.is(await codeOf(() => link.whenOnline({ timeoutMs: 5_000 })), 'CERT_UNTRUSTED')
    } finally {
      await link.close()
    }
    await assertRefused('SITE_UNKNOWN', { to: 'foreign' })
  },
  { skip },
)

test(
  'a site with an expired certificate does not start; one whose certificate expires meanwhile loses its link and gets no VM',
  async () => {
    const { lab } = await scene()
    assert.is(await codeOf(() => lab.addSite('expired', { notAfter: NOW_SECONDS - 5 })), 'CERT_EXPIRED')
    const notAfter = nowSeconds() + 3
    await lab.addSite('expiring', { notAfter })
    const isOffline = async () => {
      const { sites } = await lab.api<{ sites: { site: string; online: boolean }[] }>('GET', '/v1/sites')
      return sites.some(({ site, online }) => site === 'expiring' && !online) || undefined
    }
    await eventually(isOffline, { ms: 20_000, what: 'the end of the link whose certificate has expired' })
    assert.ok(Date.now() >= notAfter * 1000, 'not before the certificate')
    await assertRefused('SITE_OFFLINE', { to: 'expiring' })
  },
  { skip },
)

test(
  'while the gateway is down a command says so with exit code 5, the VM goes on, and all is well when it is back',
  async () => {
    const { lab, guest } = await scene()
    const { url, tokenFile } = lab.target
    await lab.stopGateway()
    const io = recordingIo()
    const code = await run(['migrate', VM, '--to', 'b', '--json', '--gateway', url!, '--token-file', tokenFile], io)
    assert.is(code, 5)
    assert.is(JSON.parse(io.stdout || io.stderr).error.code, 'GATEWAY_UNREACHABLE')
    await guest.observer.next('beat', 5_000)
    await lab.startGateway()
    for (const site of ['a', 'b']) await lab.site(site).node.link.whenOnline({ timeoutMs: 20_000 })
    assert.is((await lab.migrate({ vm: VM, to: 'b' })).outcome, 'completed', lab.logTail())
    assert.equal(lab.site('a').node.registry.list(), [])
    await guest.assertSound()
  },
  { skip },
)

test('the lab ends', () => scene.dispose(), { skip })

test.run()
