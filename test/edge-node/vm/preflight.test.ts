import { type HostInfo, needsToJson, parseNeeds, preflight, preflightProblems, type VmNeeds } from '../../../edge-node/vm/preflight.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { MIB } from '../../../wire/units.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('edge-node/vm/preflight')

const root = 'ab'.repeat(32)
const spec = parseSpec(`name: a
memory: 64MiB
kernel: vmlinuz
disks: [{file: d.img, mode: ephemeral, format: raw}]
nics: [{type: tap, tap: tap7}]
`)
const files = { 'kernel/vmlinuz': { bytes: 5, root }, 'ephemeral/d.img': { bytes: 6, root } }
const needs: VmNeeds = { spec, qemuVersion: '10.0.2', accelerator: 'tcg', method: 'live', files }
const host: HostInfo = {
  qemuVersion: '10.0.2',
  accelerators: ['kvm', 'tcg'],
  machines: ['pc-i440fx-9.0'],
  cpus: { tcg: { qemu64: [], 'Icelake-Server': ['avx512f'] }, kvm: { qemu64: ['svm'], 'Icelake-Server': ['avx512f'] } },
  vcpus: 2,
  memoryFreeBytes: 1024 * MIB,
  diskFreeBytes: 1024 * MIB,
  files,
  taps: ['tap7'],
}
const code = (n: Partial<VmNeeds>, h: Partial<HostInfo> = {}) => preflight({ ...needs, ...n }, { ...host, ...h })?.code ?? 'none'

test('a host with all that is needed takes the VM', () => {
  assert.is(preflight(needs, host), undefined)
})

test('each thing that is wanting has its own code', () => {
  assert.is(code({}, { qemuVersion: undefined }), 'PREFLIGHT_QEMU_MISSING')
  assert.is(code({}, { accelerators: ['kvm'] }), 'PREFLIGHT_ACCELERATOR')
  assert.is(code({ accelerator: 'kvm' }, { accelerators: ['tcg'] }), 'PREFLIGHT_ACCELERATOR')
  assert.is(code({}, { machines: ['pc-i440fx-7.2'] }), 'PREFLIGHT_MACHINE')
  assert.is(code({ spec: { ...spec, cpu: 'Nonesuch' } }), 'PREFLIGHT_CPU')
  assert.is(code({}, { memoryFreeBytes: (64 + 128) * MIB - 1 }), 'PREFLIGHT_MEMORY')
  assert.is(code({}, { memoryFreeBytes: (64 + 128) * MIB }), 'none')
  assert.is(code({}, { diskFreeBytes: MIB }), 'PREFLIGHT_DISK_SPACE')
  assert.is(code({}, { taps: ['tap8'] }), 'PREFLIGHT_DEVICE')
})

test('live under TCG needs QEMU 9.0 at both ends, cold and KVM do not', () => {
  const old = { qemuVersion: '7.2.22' }
  assert.is(code(old), 'PREFLIGHT_QEMU_OLD')
  assert.is(code(old, old), 'PREFLIGHT_QEMU_OLD')
  assert.is(code({ qemuVersion: '9.0.0' }), 'none')
  assert.is(code({ ...old, method: 'cold' }, old), 'none')
  assert.is(code({ ...old, accelerator: 'kvm' }, old), 'none')
  assert.is(code({ qemuVersion: '6.2.0', method: 'cold' }), 'PREFLIGHT_QEMU_OLD')
  assert.match(preflight({ ...needs, ...old }, host)!.hint, '--method cold')
})

test('the target may not be older than the source by a minor version; a patch level does not count', () => {
  assert.is(code({}, { qemuVersion: '9.2.4' }), 'PREFLIGHT_QEMU_DOWNGRADE')
  assert.is(code({ method: 'cold' }, { qemuVersion: '9.2.4' }), 'PREFLIGHT_QEMU_DOWNGRADE')
  assert.is(code({}, { qemuVersion: '10.0.0' }), 'none')
  assert.is(code({}, { qemuVersion: '10.10.0' }), 'none')
})

test('a stopped VM takes no device state with it: older QEMU, other accelerator, and memory only where it starts', () => {
  const stopped = { method: 'cold', stopped: 'stays' } as const
  assert.is(code(stopped, { qemuVersion: '9.2.4' }), 'none')
  assert.is(code(stopped, { qemuVersion: '6.2.0' }), 'PREFLIGHT_QEMU_OLD')
  assert.is(code(stopped, { memoryFreeBytes: MIB }), 'none')
  assert.is(code({ ...stopped, stopped: 'starts' }, { memoryFreeBytes: MIB }), 'PREFLIGHT_MEMORY')
  assert.is(code({ ...stopped, accelerator: 'kvm' }, { accelerators: ['tcg'] }), 'none')
  assert.is(code({ ...stopped, spec: { ...spec, accelerator: 'kvm' } }, { accelerators: ['tcg'] }), 'PREFLIGHT_ACCELERATOR')
  assert.is(code(stopped, { machines: ['pc-i440fx-7.2'] }), 'PREFLIGHT_MACHINE')
  assert.is(code(stopped, { files: {} }), 'PREFLIGHT_FILE_MISSING')
})

test('a CPU model counts as runnable under KVM only with all its features; TCG emulates', () => {
  const icelake = { ...spec, cpu: 'Icelake-Server' }
  assert.is(code({ spec: icelake }), 'none')
  assert.is(code({ spec: icelake, accelerator: 'kvm' }), 'PREFLIGHT_CPU')
  assert.is(code({ accelerator: 'kvm' }), 'none')
})

test('files must be there and the same', () => {
  assert.is(code({ files: {} }), 'PREFLIGHT_FILE_MISSING')
  assert.is(code({}, { files: { 'kernel/vmlinuz': files['kernel/vmlinuz'] } }), 'PREFLIGHT_FILE_MISSING')
  assert.is(code({}, { files: { ...files, 'kernel/vmlinuz': { bytes: 5, root: 'cd'.repeat(32) } } }), 'PREFLIGHT_FILE_MISSING')
  assert.is(code({}, { files: { ...files, 'kernel/vmlinuz': { bytes: 6, root } } }), 'PREFLIGHT_FILE_MISSING')
})

test('UEFI code must be the same at both sites', () => {
  const uefi = { spec: { ...spec, firmware: 'uefi' as const }, files: { ...files, 'firmware/OVMF_CODE_4M.fd': { bytes: 5, root } } }
  const here = (of: string) => ({ files: { ...files, 'firmware/OVMF_CODE_4M.fd': { bytes: 5, root: of } } })
  assert.is(code(uefi, here(root)), 'none')
  assert.is(code(uefi), 'PREFLIGHT_FILE_MISSING')
  assert.match(preflight({ ...needs, ...uefi }, { ...host, ...here('cd'.repeat(32)) })?.hint ?? '', 'same version of the package ovmf')
})

test('a writable disk stays, a shared one must be on one storage', () => {
  const disk = (mode: 'writable' | 'shared') => ({ ...spec, kernel: undefined, disks: [{ file: 'd.img', mode, format: 'raw' as const }] })
  assert.is(code({ spec: disk('writable') }), 'PREFLIGHT_WRITABLE_DISK')
  const shared = { spec: disk('shared'), files: { 'shared/d.img': { bytes: 6 } } }
  const seen = { files: { 'shared/d.img': { bytes: 7 } } }
  assert.is(code({ ...shared, sharedId: 'x' }, { ...seen, sharedId: 'x' }), 'none')
  assert.is(code({ ...shared, sharedId: 'x' }, { ...seen, sharedId: 'y' }), 'PREFLIGHT_FILE_MISSING')
  assert.is(code(shared, seen), 'PREFLIGHT_FILE_MISSING')
})

test('all problems can be listed', () => {
  const problems = preflightProblems(needs, { ...host, memoryFreeBytes: 0, taps: [], machines: [] })
  assert.equal(
    problems.map(problem => problem.code),
    ['PREFLIGHT_MACHINE', 'PREFLIGHT_MEMORY', 'PREFLIGHT_DEVICE'],
  )
})

test('needs cross the wire unchanged, and hostile ones are refused', async () => {
  const json = JSON.parse(JSON.stringify(needsToJson(needs)))
  assert.equal(parseNeeds(json), needs)
  for (const change of [{ qemuVersion: 'new' }, { accelerator: 'hvf' }, { method: 'hot' }, { files: { x: { bytes: -1 } } }, { spec: 7 }])
    assert.is(await codeOf(() => parseNeeds({ ...json, ...change })), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => parseNeeds(null)), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => parseNeeds({ ...json, more: 1 })), 'VERSION_UNSUPPORTED')
  assert.is(await codeOf(() => parseNeeds({ ...json, spec: 'name: ../x' })), 'VM_SPEC_INVALID')
})

test.run()
