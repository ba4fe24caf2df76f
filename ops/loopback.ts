// Whether a listener at a host can be reached from this machine only. Enters: the host of a configuration. Leaves: true
// or false; false for a name other than localhost. Pure.
import { isIP, isIPv4 } from 'node:net'

export function isLoopback(host: string): boolean {
  if (isIPv4(host)) return host.startsWith('127.')
  if (isIP(host) === 6) return /^(0{0,4}:){0,7}:?0{0,3}1$/.test(host) || /^::ffff:127\./i.test(host)
  return host.toLowerCase() === 'localhost'
}

export const TLS_NEEDED =
  'an address beyond this machine needs tls.certificate and tls.key; or listen on 127.0.0.1, behind a TLS proxy or an SSH tunnel'
