// Where notifications may go: `host` or `host:port`, as the operator wrote it. Enters: a URL of a subscriber, the list.
// Leaves: yes or no. Pure.
/** Whether the list has the URL's host, with its port or without any, in whatever case. */
export function isCallbackAllowed(url: string, list: readonly string[]): boolean {
  const { hostname, port, protocol } = new URL(url)
  const host = hostname.replace(/^\[|\]$/g, '').replace(/\.$/, '')
  return list.some(entry => {
    const wanted = parseCallbackHost(entry)
    return wanted?.host === host && (wanted.port === undefined || wanted.port === Number(port || (protocol === 'https:' ? 443 : 80)))
  })
}

/**
 * `name`, `name:port`, `1.2.3.4:port`, `::1`, `[::1]:port`; undefined for anything else. The host as a URL would have
 * it.
 */
export function parseCallbackHost(entry: string): { host: string; port: number | undefined } | undefined {
  const match = /^(?:\[([0-9a-f:.]+)\]|([0-9a-f]*:[0-9a-f:.]*:[0-9a-f:.]*)|([^\s/:@[\]]+))(?::(\d{1,5}))?$/i.exec(entry.trim())
  const address = match?.[1] ?? match?.[2]
  const text = address === undefined ? match?.[3] : `[${address}]`
  const port = match?.[4] === undefined ? undefined : Number(match[4])
  if (text === undefined || !URL.canParse(`http://${text}/`) || (port !== undefined && (port < 1 || port > 65_535))) return undefined
  return { host: new URL(`http://${text}/`).hostname.replace(/^\[|\]$/g, '').replace(/\.$/, ''), port }
}
