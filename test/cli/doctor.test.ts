import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { renderChecks } from '../../cli/commands/doctor.ts'
import { runChecks } from '../../cli/doctor/doctor.ts'
import { packageChecks } from '../../cli/doctor/packages.ts'
import { methodChecks, usersCheck } from '../../cli/doctor/qemu.ts'
import { trustChecks } from '../../cli/doctor/trust.ts'
import { nowSeconds } from '../../ops/clock.ts'
import { assert, suite } from '../support/suite.ts'
import { home, recordingIo } from './recording-io.ts'

const test = suite('cli: doctor')

test('which methods a host has follows from QEMU and what ran', () => {
  const states = (version: string, ...accelerators: ('kvm' | 'tcg')[]) => methodChecks(version, { accelerators }).map(({ state }) => state)
  assert.equal(states('10.0.2', 'tcg'), ['ok', 'ok'])
  assert.equal(states('9.0.0', 'tcg'), ['ok', 'ok'])
  assert.equal(states('8.2.9', 'tcg'), ['warn', 'ok'])
  assert.equal(states('7.2.22', 'kvm', 'tcg'), ['ok', 'ok'])
  assert.equal(states('10.0.2'), ['fail', 'fail'])
  assert.match(methodChecks('7.2.22', { accelerators: ['tcg'] })[0]!.advice!, /--method cold/)
})

test('each line says ok, warn or fail, and what to do', () => {
  const text = renderChecks([
    { name: 'node', state: 'ok', detail: '26' },
    { name: 'qemu', state: 'fail', detail: 'not there', advice: 'install it' },
  ])
  assert.is(text, 'ok    node  26\nfail  qemu  not there\n            -> install it\n\n1 ok, 0 warn, 1 fail\n')
})

test(
  'on this host every check answers, within its deadline, and none throws',
  async () => {
    await using at = await home()
    const checks = await runChecks(recordingIo({ env: at.env }))
    const names = checks.map(({ name }) => name)
    for (const name of ['node', 'qemu', 'method live', 'method cold', 'memory', 'disk', 'guest memory', 'crypto', 'compression', 'clock'])
      assert.ok(names.includes(name), name)
    assert.ok(names.some(name => name.startsWith('transport')))
    assert.is(checks.find(({ name }) => name === 'node')?.state, 'ok')
    for (const { name, state, advice } of checks) if (state === 'warn') assert.ok(advice, name)
  },
  { ms: 60_000 },
)

test('packages that some VMs need are named with what does not work without them', async () => {
  await using at = await home()
  const bin = at.path('bin')
  await mkdir(bin, { recursive: true })
  for (const program of ['qemu-img', 'qemu-nbd']) await writeFile(join(bin, program), '', { mode: 0o755 })
  await writeFile(join(bin, 'xorriso'), '', { mode: 0o644 })
  const states = (await packageChecks(`/nowhere:${bin}`)).map(({ name, state }) => [name, state])
  assert.equal(states.slice(0, 2), [
    ['qemu-utils', 'ok'],
    ['xorriso', 'warn'],
  ])
  const use = 'VMs with firmware: uefi'
  assert.equal(await packageChecks('', [{ name: 'ovmf', programs: [], files: [join(bin, 'none.fd')], use }]), [
    { name: 'ovmf', state: 'warn', detail: `${join(bin, 'none.fd')} missing: no ${use}`, advice: 'run apt-get install ovmf' },
  ])
  const without = await packageChecks('')
  assert.match(without[0]!.detail, /^qemu-img and qemu-nbd missing: no images, local disks/)
})

test('a node that is root and lets its QEMUs run as root fails; another user is warned', () => {
  const isRoot = process.getuid?.() === 0
  assert.is(usersCheck('off').state, isRoot ? 'fail' : 'warn')
})

test('what trust rests on: a certificate that nears its end, a revocation list that is missing, old or forged', async () => {
  await using at = await home()
  await at.godwit('root', 'create')
  await at.godwit('keygen', '--role', 'gateway', '--id', 'gateway')
  await at.godwit('root', 'sign', at.path('config', 'gateway.request'), '--no-fingerprint')
  const files = {
    kind: 'gateway' as const,
    certificate: at.path('config', 'gateway.cert'),
    root: at.path('config', 'root.pub'),
    revocations: at.path('config', 'revocations'),
  }
  const states = async (days: number, more: object = {}) =>
    (await trustChecks({ ...files, ...more }, nowSeconds() + days * 86_400)).map(({ name, state }) => `${name} ${state}`)
  assert.equal(await states(0), ['gateway certificate ok', 'revocation list ok'])
  assert.equal(await states(24), ['gateway certificate warn', 'revocation list warn'])
  assert.equal(await states(31), ['gateway certificate fail', 'revocation list fail'])
  assert.equal(await states(0, { revocations: at.path('none') }), ['gateway certificate ok', 'revocation list fail'])
  assert.equal(await states(0, { kind: 'node', revocations: at.path('none') }), ['node certificate ok'])
  await at.godwit('root', 'create', '--out', at.path('other'))
  assert.equal(await states(0, { revocations: at.path('other', 'revocations') }), ['gateway certificate ok', 'revocation list fail'])
})

test.run()
