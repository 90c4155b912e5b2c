"""The words of SMTP replies: inflections, spellings, slips and translations folded to one word each.

1. Translations are of texts that servers really send: German, French, Spanish, Italian, Portuguese, Dutch, Polish and
   Scandinavian replies exist; others answer in English. Accents are gone before the look-up.
2. `#zone` stands for the name of a public block list: who names one says why he refuses.
"""

from __future__ import annotations

from engine.core.phrases import vocabulary

LIST_MARKS = (
    "spamhaus", "spamcop", "sorbs", "abusix", "uceprotect", "barracudacentral", "invaluement", "backscatterer",
    "mailspike", "njabl", "spamrl", "nixspam", "manitu", "psbl", "surriel", "abuseat", "dnsbl", "dnsrbl", "drbl",
    "rbl.", "senderscore", "csi.", "ipcheck", "dialups.", "blackhole", "blocklist", "blacklist",
)  # fmt: skip

# folded: spellings. `-` holds the words without weight.
WORDS = vocabulary("""
-: a an the is are was were be been being has had this that it its of do does did as and so just currently le la les l
    el il lo der die das dem den des ist est esta un une uno du de d au im ein eine hat wurde ya very really at ma
user: users username benutzer benutzername empfangername nutzer utilisateur usuario utente uzytkownik gebruiker bruker
    anvandare kayttaja brukeren brugeren customer subscriber
person: persona people anybody somebody employee member spectator
mailbox: mailboxes mbox inbox maildrop postfach boite bal casella casilla caixa buzon skrzynka mailfach postvak
    brevlada maibox mailboksen postkasse
account: accounts acct konto konta kontos compte cuenta conta kunde benutzerkonto mailkonto rachunek
recipient: recipients rcpt rcptto receiver addressee empfanger empfaenger destinataire destinatario destinataires
    destinatari mottaker mottagare odbiorca ontvanger recipent reciepient adressat
    empfaengeradresse empfangeradresse mottakeren mottagaren modtager destinatarios odbiorcy
badrcptto: badrecipientto
address: addresses mailaddress mailaddresses addr adresse adressen adres adresy direccion endereco indirizzo adresa
    adr
mail: mails email emails correo courrier posta poczta courriel
alias: aliases
message: messages msg nachricht mensaje messaggio mensagem wiadomosc mesage
mailfrom: 5321mailfrom
sender: senders absender absenders absenderadresse expediteur emetteur remitente mittente remetente nadawca afzender
    avsender originator
unknown: unkown unknow inconnu inconnue inconnus unbekannt unbekannter unbekannte unbekannten desconocido desconocida
    desconhecido desconhecida sconosciuto sconosciuta nieznany nieznana okand okant onbekend onbekende ukjent ukjente
    okanda ukendt unbekanntes inconnues unrecognized unrecognised
exist: exists existe existing existent existiert existieren esiste existence istnieje bestaat bestar finnes findes
    finns hittades existerar vorhanden existuje existen existem exista
nonexistent: nonexistant inexistant inexistante inexistent inexistente inesistente
not: nicht kein keine keinen nie pas nao niet geen inte brak nema ikke cannot cant dont doesnt isnt wont unable havent
    hasnt wasnt arent didnt couldnt non
found: locate located find gefunden trouve trouvee trovato trovata encontrado encontrada znaleziono
invalid: invalide invalides ungultig ungueltig ungultige ungueltige ungultiger invalido invalida illegal incorrect
    wrong errato errata erroneous malformed misspelled mistyped invaid bad
valid: gultig gueltig valide valido deliverable
disabled: disable disattivato disattivata desactivada desactivado desativada desativado deactivated deactivate
    desactive desactivee deaktiviert inactive inactif inaktiv inactivated suspended suspend suspendu closed ferme
    deleted delete geloscht geloescht terminated frozen archived retired expired inactivo inactiva expirado expirada
    discontinued nieaktywne nieaktywny inutilizzo inutilisee inativo inativa inativada removed dormant cancelled
    canceled deprovisioned decommissioned abandoned invalidated
locked: lock hold
full: pleine voll ubervoll ueberfuellt uberfullt lleno llena plein piena pieno cheia vol
quota: quotas quote overquota kvota
over: atteinte exceed exceeds exceeded exceeding exceds exeeded exceeed exceded uberschritten ueberschritten depasse
    depassee exhausted surpassed reached superata superato overdrawn excedido
storage: speicherplatz speicher diskspace
bulk: bulkmail
advertising: advertisement advertisements
mismatch: mismatched mismatches mismatching
limit: limite threshold allowance limits limited limitation limiting
active: activa activo aktiv actif
handle: handled handles
serve: served serves
such: takiego solcher solche solches tel
unavailable: indisponible unreachable
available: disponible verfugbar verfuegbar reachable
temporary: temporarily temporarly temporaire temporairement vorubergehend voruebergehend temporaneamente temporalmente
    temporaneo momentarily
reject: rejected rejects rejecting rejection refuse refused refuses refusing refuser denied deny denies denying
    abgelehnt abgewiesen verweigert rechazado rechazada rifiutato rifiutata rejete rejetee rejetes abgewiesene weigert
    refusee rejeitado odrzucona odrzucono zuruckgewiesen declined decline disallowed
accept: accepted accepts accepting acceptable accepte aceptado accettato akzeptiert angenommen odbiera
unacceptable: unaccepted unwelcome
allow: allowed permit permitted erlaubt autorise permitido consentito permits allows
authorized: authorised authorization authorisation authorize authorise
unauthorized: unauthorised
block: blocked blocking blocks bloque bloquee bloqueado bloqueada bloccato bloccata geblockt blockiert geblokkeerd
    zablokowane zablokowany gesperrt gesperrte bloquees sperret
ban: banned banning
list: listed listing lists gelistet liste listado
blocklist: blocklists blocklisted blacklist blacklists blacklisted blacklisting denylist denylisted rbl rbls dnsbl
    dnsbls rhsbl rhsbls dnsrbl drbl rblsmtpd dnsblock blackholes blackholed ipbl
whitelist: whitelisted allowlist allowlisted whitelisting
#zone: spamhaus spamcop sorbs abusix uceprotect barracudacentral invaluement backscatterer mailspike njabl spamrl
    dnswl manitu nixspam swinog psbl surriel senderscore cbl abuseat
ip: ips ipv4 ipv6
host: hosts hostname hostnames machine smtpclient
server: servers serveur mta
client: clients
network: networks netblock subnet isp range
reputation: reputations sbrs senderbase
ptr: rdns fcrdns
helo: ehlo
dynamic: dialup dsl residential dul dial
access: zugriff acces acceso accesso
known: bekannt connu conocido conosciuto conhecido znany
relay: relais weiterleiten relaying relayed relays weiterleitung
spam: antyspamowy spams spamming spammer spammers spamlike antispam junk junkmail unsolicited uce ube phishing phish
    phishy malware worm suspicious
virus: viruses viren trojan infected
uribl: surbl dbl
content: contents inhalt attachment attachments anhang subject body
header: headers
large: big huge
size: taille grosse groesse sizelimit
policy: policies mailpolicy richtlinie richtlinien politique politica
prohibited: prohibition prohibits prohibit interdit verboten forbidden
administrative: administratively
permission: permissions
authentication: authenticate authenticated authenticating authenticates auth smtpauth authentifizierung
    authentification autenticacion autenticazione
unauthenticated: nonauthenticated
login: logged logon log
password: credentials credential
tls: starttls ssl encryption encrypted
require: required requires requirement requirements must need needs needed necessary verlangt erforderlich mandatory
fail: failed fails failure failing failures echoue fehlgeschlagen
error: errors fehler erreur
verify: verified verification validate validated validation callout callback checked check lookup
unverified: unverifiable unverifyable unverifable unvalidated
greylist: greylisted greylisting graylist graylisted graylisting postgrey milter-greylist greylists
later: spater spaeter shortly ulterieurement
again: nochmal erneut
retry: retries reessayer resend
seconds: second sec secs sekunden
minutes: minute min mins minuten
too: zu trop demasiados troppe troppi demasiadas muitas
many: viele nombreux
much: viel
connection: connections connexions connexion verbindungen conn connects conns connecting connect conexiones
    connessioni
session: sessions
concurrent: simultaneous parallel
rate: rates
throttle: throttled throttling ratelimit ratelimited ratelimiting
frequent: frequently frequency often
fast: quickly rapidly quick
hour: hourly hours stunde heure
day: daily days
busy: overload overloaded
insufficient: enough nsufficient
space: disk
shutdown: shutting
loop: loops looping
timeout: timed
outgoing: outbound outbounds
domain: domains domaine dominio domane domaene domena
unrouteable: unroutable
command: commands
sequence: sequencing
syntax: syntactically
restrict: restricted restriction restrictions restricttorecipients restricttorecipientspermission
    restrictedtorecipientspermission restrictedtorecipients
receive: receives receiving received recibir recevoir ricevere receving
deliver: delivery delivered delivering
send: sending sends envoyer sent submit
moved: relocated
your: ihr ihre votre ihrer yours su
you: vous
anonymous: anon
identity: identities
problem: problems
""")
