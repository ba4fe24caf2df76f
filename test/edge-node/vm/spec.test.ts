import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  disksOf,
  formatSize,
  nicMac,
  parseSpec,
  parseSpecSize,
  seedFiles,
  specFiles,
  specToYaml,
  vmUuid,
} from '../../../edge-node/vm/spec.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { assert, suite, thrown } from '../../support/suite.ts'

const test = suite('edge-node/vm/spec')

const FULL = `name: web-1
vcpus: 2
memory: 384MiB
machine: pc-q35-9.0
cpu: Skylake-Client-v1
accelerator: kvm
kernel: vmlinuz
initrd: initrd.img
append: console=ttyS0 quiet
disks:
  - {file: base.qcow2, mode: ephemeral, format: qcow2}
nics:
  - {type: user}
  - {type: tap, tap: tap0, mac: '52:54:00:aa:bb:cc'}
serial: false
compression: 'off'
policy: {latencyMsMax: 20}
`
const MINIMAL = 'name: a\nmemory: 64MiB\nkernel: vmlinuz\n'

async function refusal(text: string): Promise<string> {
  const error = await thrown(() => parseSpec(text))
  assert.ok(error instanceof GodwitError && error.code === 'VM_SPEC_INVALID', String(error))
  return (error as Error).message
}

test('a full spec is read, written and read again the same', () => {
  const spec = parseSpec(FULL)
  assert.is(spec.memoryBytes, 384 * 1024 * 1024)
  assert.is(spec.compression, 'off')
  assert.equal(parseSpec(specToYaml(spec)), spec)
})

test('a minimal spec gets the defaults, and they are written out', () => {
  const spec = parseSpec(MINIMAL)
  assert.equal(
    [spec.vcpus, spec.machine, spec.cpu, spec.accelerator, spec.serial, spec.compression],
    [1, 'pc-i440fx-9.0', 'qemu64', 'auto', true, 'zstd'],
  )
  assert.match(specToYaml(spec), 'machine: pc-i440fx-9.0')
})

test('a device that is not asked for is not written out: a site of an earlier version knows such a specification', () => {
  assert.not.match(specToYaml(parseSpec(MINIMAL)), /agent|rng|balloon|display/)
  const spec = parseSpec(`${MINIMAL}agent: true\nrng: true\nballoon: false\ndisplay: true\n`)
  assert.equal(parseSpec(specToYaml(spec)), spec)
})

test('a seed is the last disk; its meta-data follows from the name', () => {
  const text = `${MINIMAL}disks: [{file: d, mode: readonly, format: raw}]\ncloudInit: {userData: "#cloud-config\\na: ä\\n"}\n`
  const spec = parseSpec(text)
  assert.equal(parseSpec(specToYaml(spec)), spec)
  assert.equal(disksOf(spec).slice(1), [{ mode: 'local', size: '1MiB', format: 'raw' }])
  assert.equal(seedFiles(spec), {
    'user-data': '#cloud-config\na: ä\n',
    'meta-data': `instance-id: ${vmUuid('a')}\nlocal-hostname: a\n`,
  })
  assert.is(seedFiles(parseSpec(MINIMAL)), undefined)
})

test('each wrong field is named with its line and what is allowed', async () => {
  for (const [text, ...parts] of [
    ['name: Web_1\nmemory: 64MiB\nkernel: k', 'name (line 1)', 'a-z'],
    ['name: a\nmemory: 64\nkernel: k', 'memory (line 2)', '384MiB'],
    ['name: a\nmemory: 64MB\nkernel: k', 'memory (line 2)', '384MiB'],
    ['name: a\nmemory: 1500KiB\nkernel: k', 'memory (line 2)', 'whole number'],
    ['name: a\nmemory: 2TiB\nkernel: k', 'memory (line 2)', '1TiB'],
    ['name: a\nkernel: k', 'memory', 'is missing'],
    [`${MINIMAL}vcpus: 0`, 'vcpus (line 4)'],
    [`${MINIMAL}vcpus: 1.5`, 'vcpus (line 4)'],
    [`${MINIMAL}machine: q35`, 'machine (line 4)', 'add a version'],
    [`${MINIMAL}machine: microvm`, 'machine (line 4)', 'pc-i440fx-VERSION'],
    [`${MINIMAL}machine: 'pc-i440fx-9.0,accel=kvm'`, 'machine (line 4)'],
    [`${MINIMAL}cpu: host`, 'cpu (line 4)', 'differ from site to site'],
    [`${MINIMAL}cpu: 'qemu64,+vmx'`, 'cpu (line 4)', 'CPU model'],
    [`${MINIMAL}accelerator: hvf`, 'accelerator (line 4)', 'kvm'],
    [`${MINIMAL}compression: lz4`, 'compression (line 4)', 'zstd'],
    [`${MINIMAL}append: "a\\nb"`, 'append (line 4)', 'printable'],
    [`${MINIMAL}hugePages: true`, 'hugePages (line 4)', 'is refused', 'shmem_enabled'],
    [`${MINIMAL}balloon: 512MiB`, 'balloon (line 4)', 'boolean'],
    [`${MINIMAL}cloudInit: {metaData: a}`, 'cloudInit.userData', 'is missing'],
    [`${MINIMAL}cloudInit: {userData: a, vendorData: b}`, 'cloudInit.vendorData', 'allowed are userData, metaData, networkConfig'],
    [`${MINIMAL}cloudInit: {userData: ${'a'.repeat(64 * 1024)}}`, 'cloudInit', '64 KiB'],
    [`${MINIMAL}colour: red`, 'colour (line 4)', 'allowed are name, vcpus'],
    ['name: a\nmemory: 64MiB\nkernel: ../../etc/shadow', 'kernel (line 3)', 'no folders'],
    ['name: a\nmemory: 64MiB\nkernel: .hidden', 'kernel (line 3)', 'dot'],
    ['name: a\nmemory: 64MiB\nkernel: a,b', 'kernel (line 3)'],
    ['name: a\nmemory: 64MiB\n', 'kernel', 'required to boot'],
    ['name: a\nmemory: 64MiB\ninitrd: i\ndisks: [{file: d, mode: readonly, format: raw}]', 'initrd (line 3)', 'needs a kernel'],
    [`${MINIMAL}disks:\n  - {file: d, mode: snapshot, format: raw}`, 'disks[0].mode (line 5)', 'ephemeral'],
    [`${MINIMAL}disks:\n  - {file: d, mode: readonly}`, 'disks[0].format', 'is missing'],
    [
      `${MINIMAL}disks:\n  - {file: d, mode: readonly, format: raw, cache: x}`,
      'disks[0].cache (line 5)',
      'allowed are file, mode, bus, cdrom, format',
    ],
    [`${MINIMAL}disks: [{file: d, mode: readonly, format: raw, bus: ide}]`, 'disks[0].bus (line 4)', 'virtio-scsi'],
    [`${MINIMAL}disks: [{file: d, mode: shared, format: raw, cdrom: true}]`, 'disks (line 4)', 'd: a cdrom needs mode readonly'],
    [`${MINIMAL}disks: [{file: d, mode: readonly, format: raw, cdrom: true, bus: virtio-scsi}]`, 'disks (line 4)', 'has no bus'],
    [
      `${MINIMAL}disks: [${Array(5).fill('{file: d, mode: readonly, format: raw, cdrom: true}').join(', ')}]`,
      'disks (line 4)',
      'at most 4',
    ],
    [`${MINIMAL}nics: [{type: bridge}]`, 'nics[0].type', 'user, tap, none'],
    [`${MINIMAL}services: [{name: http, port: 80}]`, 'services', 'need a NIC of type user'],
    [`${MINIMAL}nics: [{type: user}]\nservices: [{name: http, port: 0}]`, 'services[0].port', '1 to 65535'],
    [`${MINIMAL}nics: [{type: user}]\nservices: [{name: Http, port: 80}]`, 'services[0].name', 'a-z'],
    [`${MINIMAL}nics: [{type: user}]\nservices: [{name: a, port: 1}, {name: a, port: 2}]`, 'services', 'same name'],
    [`${MINIMAL}nics: [{type: user}]\nservices: [{name: a, port: 1, host: b}]`, 'services[0].host', 'name, port'],
    [`${MINIMAL}nics: [{type: tap}]`, 'nics[0].tap', 'is missing'],
    [`${MINIMAL}nics: [{type: tap, tap: 'a,script=x'}]`, 'nics[0].tap', 'tap interface'],
    [`${MINIMAL}nics: [{type: user, mac: '53:54:00:00:00:01'}]`, 'nics[0].mac', 'multicast'],
    ['', 'the document', 'mapping'],
    ['- a', 'the document (line 1)', 'mapping'],
  ] as const) {
    const message = await refusal(text)
    for (const part of parts) assert.ok(message.includes(part), `${JSON.stringify(text)}: '${part}' is not in: ${message}`)
  }
})

test('all problems are listed, not only the first', async () => {
  const message = await refusal('name: A\nmemory: 1\nmachine: pc\nfoo: 1\nkernel: /x\n')
  assert.match(message, '5 problems')
  for (const field of ['name', 'memory', 'machine', 'foo', 'kernel'])
    assert.match(message, new RegExp(`^  ${field} \\(line [1-5]\\): `, 'm'))
})

test('malformed YAML is refused with line and column', async () => {
  for (const text of [
    'name: [a\nb: c: d',
    'name: a\nname: b',
    'name: a\n\tmemory: 1',
    'name: "a',
    'name: !!js/function x',
    'a: 1\n---\nb: 2',
  ])
    assert.match(await refusal(text), /line [0-9]+, column [0-9]+/)
})

test('a YAML bomb is refused', async () => {
  const lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x]']
  for (let n = 1; n < 9; n++)
    lines.push(
      `a${n}: &a${n} [${Array(9)
        .fill(`*a${n - 1}`)
        .join(', ')}]`,
    )
  assert.match(await refusal(lines.join('\n')), 'malformed YAML')
  assert.match(await refusal(`name: ${'x'.repeat(300_000)}`), 'larger than')
})

test('sizes are read and written', () => {
  assert.equal(['1KiB', '384MiB', '2GiB', '1TiB'].map(parseSpecSize), [1024, 402653184, 2147483648, 1099511627776])
  assert.equal(['', '1', '1MB', '-1MiB', '1.5GiB', '01MiB', ' 1MiB'].map(parseSpecSize), Array(7).fill(undefined))
  assert.equal([402653184, 2147483648, 5].map(formatSize), ['384MiB', '2GiB', '5B'])
})

test('the UUID and MAC addresses follow from the name, and are well formed', () => {
  const spec = parseSpec(FULL)
  assert.match(vmUuid('web-1'), /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  assert.is(vmUuid('web-1'), vmUuid('web-1'))
  assert.is.not(vmUuid('web-1'), vmUuid('web-2'))
  assert.match(nicMac(spec, 0), /^52:54:00(:[0-9a-f]{2}){3}$/)
  assert.is(nicMac(spec, 1), '52:54:00:aa:bb:cc')
})

test('the files of a spec are named with their use', () => {
  assert.equal(specFiles(parseSpec(FULL)), [
    { file: 'vmlinuz', use: 'kernel' },
    { file: 'initrd.img', use: 'initrd' },
    { file: 'base.qcow2', use: 'ephemeral' },
  ])
})

test('every example in examples/ is a valid spec', () => {
  const folder = join(import.meta.dirname, '../../../examples')
  const names = readdirSync(folder).filter(name => /^vm-.*\.yaml$/.test(name))
  assert.ok(names.length > 0)
  for (const name of names) parseSpec(readFileSync(join(folder, name), 'utf8'))
})

test('a file that the guest writes to is named once among the disks of its folder', async () => {
  const disks = (...of: [string, string][]) =>
    `${MINIMAL}disks: [${of.map(([file, mode]) => `{file: ${file}, mode: ${mode}, format: raw}`).join(', ')}]`
  for (const [one, two] of [
    ['writable', 'writable'],
    ['writable', 'readonly'],
    ['shared', 'shared'],
  ] as const)
    assert.match(await refusal(disks(['d.img', one], ['d.img', two])), /d\.img is listed twice/)
  parseSpec(disks(['d.img', 'readonly'], ['d.img', 'ephemeral']))
  parseSpec(disks(['d.img', 'writable'], ['d.img', 'shared']))
})

test.run()
